"""The procedural scenes as an mmseg dataset: no files, each scene is drawn when the pipeline asks for it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.datasets import BaseSegDataset

from ovseg.mm.registry import DATASETS, TRANSFORMS
from ovseg.outputs.palette import class_colors
from ovseg.scenes import SceneSet


@lru_cache(maxsize=8)
def scene_set(split: str, seed: int, length: int, size_hw: tuple[int, int]) -> SceneSet:
    """The set, once per process."""
    return SceneSet(split, seed, length=length, size_hw=size_hw)


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
        """One entry per scene; `img_path` is only a name, for outputs."""
        options = self.scene_options
        return [
            {
                "scene": {**options, "index": index},
                "img_path": f"scenes_{options['split']}_{options['seed']}_{index:05d}.png",
                "seg_fields": [],
                "reduce_zero_label": self.reduce_zero_label,
            }
            for index in range(options["length"])
        ]


@TRANSFORMS.register_module()
class RenderScene(BaseTransform):
    """Draws the scene: `img` (BGR, as loaders give it) and `gt_seg_map`."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """In the place of LoadImageFromFile and LoadAnnotations."""
        scene = dict(results["scene"])
        index = scene.pop("index")
        drawn = scene_set(**scene)[index]
        results["img"] = np.ascontiguousarray(drawn.image[..., ::-1])
        results["img_shape"] = results["ori_shape"] = drawn.image.shape[:2]
        results["gt_seg_map"] = drawn.labels
        results["seg_fields"] = ["gt_seg_map"]
        return results
