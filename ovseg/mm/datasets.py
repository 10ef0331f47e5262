"""The benchmarks that mmseg has no dataset class for: VOC without background, and COCO-Object."""

from __future__ import annotations

from typing import Any

from mmseg.datasets import BaseSegDataset

from ovseg.mm.registry import DATASETS
from ovseg.outputs.palette import class_colors
from ovseg.text.vocabulary import Vocabulary


def metainfo(class_list: str) -> dict[str, Any]:
    """Names and colours of a shipped class list, as mmengine's datasets keep them."""
    vocabulary = Vocabulary.parse(class_list)
    colors = class_colors(vocabulary.names, given=vocabulary.colors)
    return {"classes": vocabulary.names, "palette": [list(color) for color in colors]}


@DATASETS.register_module()
class PascalVOC20Dataset(BaseSegDataset):
    """Pascal VOC 2012 without background: its pixels (label 0) and the void border are left out.

    Files as for mmseg's `PascalVOCDataset`.
    """

    METAINFO = metainfo("voc20")

    def __init__(self, *, reduce_zero_label: bool = True, **kwargs: Any) -> None:
        super().__init__(
            img_suffix=".jpg", seg_map_suffix=".png", reduce_zero_label=reduce_zero_label, **kwargs
        )


@DATASETS.register_module()
class COCOObjectDataset(BaseSegDataset):
    """COCO-Object: COCO's 80 things and background, made by `tools/dataset_converters/coco_object.py`.

    Protocol of GroupViT (arXiv 2202.11094), which all later methods follow.
    """

    METAINFO = metainfo("coco_object")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(img_suffix=".jpg", seg_map_suffix="_instanceTrainIds.png", **kwargs)
