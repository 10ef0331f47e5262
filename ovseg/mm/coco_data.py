"""Data sets in COCO's form with classes in the order that was asked for: COCO, open-vocabulary COCO, LVIS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO

from ovseg.errors import ConfigError
from ovseg.mm.build import build_vocabulary
from ovseg.mm.registry import DATASETS
from ovseg.outputs.palette import class_colors
from ovseg.text.class_files import fold


class CocoTruth(COCO):
    """An annotation file of COCO or of LVIS.

    mmdet's own gives the numbers of classes in the file's order, whatever the order of the classes, and
    leaves out those that it does not find; labels would silently mean other classes.
    """

    def createIndex(self) -> None:  # pycocotools calls it so
        """Once the file is read. LVIS has no crowds, and says so by leaving the word out."""
        for annotation in self.dataset.get("annotations", []):
            annotation.setdefault("iscrowd", 0)
        super().createIndex()

    def get_cat_ids(
        self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (), cat_ids: Sequence[int] = ()
    ) -> list[int]:
        """The file's numbers of classes, in the order of the names; spaces and underscores are the same.

        Raises:
            ConfigError: the file does not have them all.
        """
        if not cat_names:
            return super().get_cat_ids(cat_names, sup_names, cat_ids)
        numbers = {_key(each["name"]): each["id"] for each in self.cats.values()}
        missing = [name for name in cat_names if _key(name) not in numbers]
        if missing:
            raise ConfigError(
                f"the annotation file has {len(numbers)} classes ({', '.join(list(numbers)[:3])}, ...), and "
                f"{len(missing)} of the data set's are not among them: {', '.join(missing[:5])}"
            )
        return [numbers[_key(name)] for name in cat_names]

    def load_imgs(self, ids: Any) -> list[dict[str, Any]]:
        """Image records; LVIS names files by their address, of which folder and name count."""
        found = super().load_imgs(ids)
        for each in found:
            each.setdefault("file_name", "/".join(each.get("coco_url", "").split("/")[-2:]))
        return found


@DATASETS.register_module()
class OvCocoDataset(CocoDataset):
    """A COCO annotation file with any classes of it.

    Args:
        vocabulary: the classes: a shipped list ("coco", "ov_coco", "lvis") or anything else that
            `build_vocabulary` takes. Names are the file's.
        only_with_objects: leave out images without an object of these classes, also in tests, as the split of
            open-vocabulary COCO does.
        kwargs: see mmdet's `CocoDataset`.
    """

    COCOAPI = CocoTruth

    def __init__(self, *, vocabulary: Any, only_with_objects: bool = False, **kwargs: Any) -> None:
        self.only_with_objects = only_with_objects
        classes = build_vocabulary(vocabulary)
        palette = class_colors(classes.names, given=classes.colors)
        super().__init__(metainfo={"classes": classes.names, "palette": palette}, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """As mmdet's; the metric learns where the truth is."""
        self._metainfo["ann_file"] = self.ann_file
        return super().load_data_list()

    def filter_data(self) -> list[dict[str, Any]]:
        """As mmdet's, and see `only_with_objects`."""
        kept = super().filter_data()
        return [each for each in kept if each["instances"] or not self.only_with_objects]


@DATASETS.register_module()
class LvisDataset(OvCocoDataset):
    """LVIS v1: its file names each image's folder (train2017 or val2017) itself.

    mmdet's own asks for the package lvis, whose evaluation (0.5.3) fails with numpy 1.24 and later. Measure
    with `OvCocoMetric(federated=True)`.
    """

    def __init__(self, *, vocabulary: Any = "lvis", **kwargs: Any) -> None:
        super().__init__(vocabulary=vocabulary, **({"data_prefix": {"img": ""}} | kwargs))


def _key(name: str) -> str:
    return fold(name.replace("_", " "))
