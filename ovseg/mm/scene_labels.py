"""Labels of training scenes in the classes of another split."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from ovseg.mm.registry import TRANSFORMS

IGNORED = 255


@lru_cache(maxsize=8)
def label_table(source: str, target: str) -> np.ndarray:
    """The target's class by the source's class, `IGNORED` where it has none."""
    from ovseg.scenes import SceneSet  # loads numba

    known = {name: index for index, name in enumerate(SceneSet(target).classes)}
    return np.array([known.get(name, IGNORED) for name in SceneSet(source).classes], np.uint8)


@TRANSFORMS.register_module()
class SceneLabels(BaseTransform):
    """`gt_seg_map` of a scene in the classes of another split; pixels of other classes are ignored.

    Scenes of the split "train" show many more classes than evaluation asks for. A closed set of classes is
    trained on those that it has. Comes after `RenderScene`.

    Args:
        split: whose classes.
    """

    def __init__(self, split: str = "test") -> None:
        self.split = split

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Changes `gt_seg_map`."""
        results["gt_seg_map"] = label_table(results["scene"]["split"], self.split)[results["gt_seg_map"]]
        return results
