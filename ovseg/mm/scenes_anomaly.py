"""Inspection scenes as an anomaly dataset: no files, each is drawn when the pipeline asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from ovseg.mm.anomaly_datasets import GOOD, AnomalyDataset
from ovseg.mm.registry import DATASETS, TRANSFORMS
from ovseg.mm.scenes_dataset import put_image
from ovseg.scenes.inspection import KINDS, InspectionSet, Part


@dataclass(frozen=True)
class GoodScene:
    """A good scene to learn from, drawn when it is called."""

    kind: str
    seed: int
    index: int
    size_hw: tuple[int, int]

    def __call__(self) -> np.ndarray:
        """Its pixels, RGB."""
        return _scenes(self.kind, "good", self.seed).render(self.index, self.size_hw).image


@DATASETS.register_module()
class ScenesAnomalyDataset(AnomalyDataset):
    """Inspection scenes: one product per category, half of the images damaged, drawn on the fly.

    Args:
        part: "test" for reporting, "val" for tuning.
        seed: which scenes.
        length: images of each category.
        size_hw: their size.
        train_length: good images of each category that there are to learn from.
        kwargs: see `AnomalyDataset`; `categories` are kinds of `ovseg.scenes.inspection`.
    """

    CATEGORIES = KINDS

    def __init__(
        self,
        *,
        part: Part = "test",
        seed: int = 0,
        length: int = 24,
        size_hw: tuple[int, int] = (224, 288),
        train_length: int = 16,
        **kwargs: Any,
    ) -> None:
        self.part, self.seed, self.length = part, seed, length
        self.size_hw = (size_hw[0], size_hw[1])
        self.train_length = train_length
        super().__init__(**kwargs)

    def train_images(self, category: str) -> Sequence[GoodScene]:
        """Good scenes, which no test shows."""
        return [GoodScene(category, self.seed, index, self.size_hw) for index in range(self.train_length)]

    def test_images(self, category: str) -> Iterator[dict[str, Any]]:
        """Scenes by number; `img_path` is only a name, for outputs."""
        for index in range(self.length):
            scene = _scenes(category, self.part, self.seed).render(index, self.size_hw)
            (defect,) = scene.instance_defects
            yield {
                "scene": (category, self.part, self.seed, index, self.size_hw),
                "img_path": f"{category}/test/{defect or GOOD}/{index:03d}.png",
                "mask_path": None,
                "defect": defect or GOOD,
            }


@TRANSFORMS.register_module()
class RenderInspection(BaseTransform):
    """Draws the scene: `img` (BGR, as loaders give it) and `gt_seg_map`, 1 where damaged."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """In the place of LoadImageFromFile and LoadAnomalyMask."""
        kind, part, seed, index, size_hw = results["scene"]
        scene = _scenes(kind, part, seed).render(index, tuple(size_hw))
        put_image(results, scene.image)
        results["gt_seg_map"] = scene.defects.astype(np.uint8)
        results["seg_fields"] = ["gt_seg_map"]
        return results


@lru_cache(maxsize=32)
def _scenes(kind: str, part: Part, seed: int) -> InspectionSet:
    return InspectionSet(kind, part, seed)
