"""Training scenes of one thing each, half of them damaged: what AnomalyCLIP's prompts learn from."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset

from ovseg.mm.registry import DATASETS, TRANSFORMS
from ovseg.mm.scenes_dataset import put_image
from ovseg.scenes import SceneSet
from ovseg.scenes.plan import SPLIT_SETTINGS


@lru_cache(maxsize=4)
def _scenes(seed: int) -> SceneSet:
    return SceneSet("train", seed, settings=SPLIT_SETTINGS["anomaly"])


@DATASETS.register_module()
class ScenesDefectsDataset(BaseDataset):
    """Scenes of the split "train" with one large object of any kind, drawn on the fly.

    Args:
        seed: which scenes; none of them is in `ScenesAnomalyDataset`, whose split is another.
        length: how many.
        size_hw: their size.
        kwargs: see mmengine's `BaseDataset`; the pipeline begins with `RenderDefects`.
    """

    METAINFO = {"classes": ("normal", "abnormal")}  # noqa: RUF012  # mmengine copies it

    def __init__(
        self, *, seed: int = 0, length: int = 4000, size_hw: tuple[int, int] = (224, 224), **kwargs: Any
    ) -> None:
        self.seed, self.length, self.size_hw = seed, length, (size_hw[0], size_hw[1])
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry per scene; `img_path` is only a name, for messages."""
        return [
            {
                "scene": (self.seed, index, self.size_hw),
                "img_path": f"defects_{self.seed}_{index:05d}.png",
                "category": "object",
                "seg_fields": [],
                "reduce_zero_label": False,
            }
            for index in range(self.length)
        ]


@TRANSFORMS.register_module()
class RenderDefects(BaseTransform):
    """Draws the scene: `img` (BGR, as loaders give it) and `gt_seg_map`, 1 where damaged."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """In the place of LoadImageFromFile and LoadAnomalyMask."""
        seed, index, size_hw = results["scene"]
        scene = _scenes(seed).render(index, tuple(size_hw))
        put_image(results, scene.image)
        results["gt_seg_map"] = scene.defects.astype(np.uint8)
        results["seg_fields"] = ["gt_seg_map"]
        return results
