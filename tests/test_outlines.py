"""SAM draws the outlines of what a score map has found, beside any method, with the bundled models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovseg.images import read_image
from ovseg.predictors import build_predictor

FARM = Path(__file__).parents[1] / "demo" / "images" / "farm.jpg"
WORDS = "horse, cow, sheep, grass"


@pytest.mark.parametrize("method", ["naclip", "trident"])
@pytest.mark.parametrize("cached", [False, True])
def test_the_same_objects_with_other_outlines(method: str, cached: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"encoder": "bundled", "device": "cpu", "short_side": 224, "crop": 112}
    options |= {"stride": 112, **({"feature_cache": tmp_path} if cached else {})}
    plain, drawn = (
        build_predictor(method, ("detect",), outlines=outlines, **options) for outlines in (False, True)
    )
    (before,), (after,) = (
        list(each.answers([read_image(FARM)], WORDS, tasks=("detect",))) for each in (plain, drawn)
    )
    assert len(before.detections) == len(after.detections) > 0
    assert before.detections.labels.tolist() == after.detections.labels.tolist()
    assert not np.allclose(before.detections.boxes_xyxy, after.detections.boxes_xyxy)
    assert drawn.describe()["outlines"] is True
    if method == "trident" and not cached:
        assert drawn.heads.sam is drawn.scorer.sam, "one SAM for both"
