"""The procedural scenes as an mmseg dataset: no files, each scene is drawn when the pipeline asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import UInt8
from mmcv.transforms import BaseTransform
from mmseg.datasets import BaseSegDataset

from ovseg.mm.registry import DATASETS, TRANSFORMS
from ovseg.outputs.palette import class_colors
from ovseg.scenes import SceneSet


@lru_cache(maxsize=8)
def scene_set(split: str, seed: int, length: int, size_hw: tuple[int, int]) -> SceneSet:
    """The set, once per process."""
    return SceneSet(split, seed, length=length, size_hw=size_hw)


def entries(scenes: Mapping[str, Any], prefix: str = "scenes", **others: Any) -> list[dict[str, Any]]:
    """What a dataset knows of each scene; `img_path` is only a name, for outputs.

    Args:
        scenes: options of `scene_set`.
        prefix: of the name.
        others: the same in every entry.
    """
    start = f"{prefix}_{scenes['split']}_{scenes['seed']}"
    return [
        {
            "scene": {**scenes, "index": index},
            "img_path": f"{start}_{index:05d}.png",
            "img_id": index,
            **others,
        }
        for index in range(scenes["length"])
    ]


def put_image(results: dict[str, Any], image: UInt8[np.ndarray, "H W 3"]) -> None:
    """An RGB image into a pipeline, as loaders give it: BGR, with its size."""
    results["img"] = np.ascontiguousarray(image[..., ::-1])
    results["img_shape"] = results["ori_shape"] = image.shape[:2]


@DATASETS.register_module()
class ScenesDataset(BaseSegDataset):
    """Scenes with a class for every pixel; the classes are those of the split.

    Args:
        split, seed, length, size_hw: see `ovseg.scenes.SceneSet`. Tune on "val", report on the others.
        pipeline: begins with `RenderScene` in the place of loading.
        kwargs: see `BaseSegDataset`.
    """

    def __init__(
        self,
        *,
        split: str = "test",
        seed: int = 0,
        length: int = 64,
        size_hw: tuple[int, int] = (224, 288),
        **kwargs: Any,
    ) -> None:
        self.scene_options: dict[str, Any] = {
            "split": split,
            "seed": seed,
            "length": length,
            "size_hw": tuple(size_hw),
        }
        classes = scene_set(**self.scene_options).classes
        palette = [list(color) for color in class_colors(classes)]
        super().__init__(metainfo={"classes": classes, "palette": palette}, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry per scene."""
        return entries(self.scene_options, seg_fields=[], reduce_zero_label=self.reduce_zero_label)


@TRANSFORMS.register_module()
class RenderScene(BaseTransform):
    """Draws the scene: `img` (BGR, as loaders give it) and `gt_seg_map`."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """In the place of LoadImageFromFile and LoadAnnotations."""
        scene = dict(results["scene"])
        index = scene.pop("index")
        drawn = scene_set(**scene)[index]
        put_image(results, drawn.image)
        results["gt_seg_map"] = drawn.labels
        results["seg_fields"] = ["gt_seg_map"]
        return results
