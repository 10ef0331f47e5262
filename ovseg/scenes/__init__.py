"""Procedural open-vocabulary scenes with every kind of truth, free of photographs and of labelling.

A scene is a function of (split, seed, index, settings) and the same on every machine. It serves three
ends: training the bundled models, the accuracy benchmark, and tests of every head (masks, boxes, counts,
defects). Needs the extra `scenes` (numba).
"""

from __future__ import annotations

from ovseg.errors import MissingDependencyError

try:
    import numba  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(
        "ovseg.scenes composes its pictures with numba, which is not installed: pip install ovseg[scenes]"
    ) from error

from ovseg.scenes.dataset import SPLITS, Scene, SceneSet
from ovseg.scenes.plan import SceneSettings

__all__ = ["SPLITS", "Scene", "SceneSet", "SceneSettings"]
