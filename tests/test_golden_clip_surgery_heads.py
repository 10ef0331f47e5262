"""CLIP Surgery's scores, maps and point prompts against what its authors' code computes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from anomaly_support import as_rgb, settings_of, vision_tower
from golden_cases import Case, cases

from ovseg.methods.clip_surgery import (
    clip_surgery,
    feature_surgery,
    sam_points,
    single_text_surgery,
    unit_maps,
)

close = partial(torch.testing.assert_close, rtol=0, check_dtype=False, atol=1e-4)


def grid(case: Case, scores: torch.Tensor) -> torch.Tensor:
    """Scores per token to maps `(B, K, h, w)`."""
    cells = settings_of(case)["image_px"] // settings_of(case)["patch"]
    return scores[:, 1:].mT.unflatten(-1, (cells, -1))


@pytest.mark.parametrize("case", cases("clip_surgery_heads"))
def test_golden_features(case: Case) -> None:
    encoder = vision_tower(case)
    method = clip_surgery(
        encoder, short_side=None, dual_blocks=settings_of(case)["dual_last_blocks"], as_published=True
    )
    with torch.no_grad():
        features = method.features(as_rgb(encoder, case["image"]))
    tokens = torch.cat([features.prefix, features.grid.flatten(2).mT], dim=1)
    close(tokens, case["features_raw"])
    close(F.normalize(tokens, dim=-1), case["features"])


@pytest.mark.parametrize("case", cases("clip_surgery_heads"))
def test_golden_surgery(case: Case) -> None:
    tokens, text = case["features"], case["text_features"]
    scores = feature_surgery(tokens, tokens[:, 0], text)
    close(scores, case["similarity"])
    close(single_text_surgery(tokens, text, case["redundant_feature"][0]), case["similarity_single_text"])
    size_hw = tuple(case["similarity_map"].shape[1:3])
    maps = F.interpolate(unit_maps(grid(case, scores)), size_hw, mode="bilinear")
    close(maps.permute(0, 2, 3, 1), case["similarity_map"], atol=1e-3)


@pytest.mark.parametrize("case", cases("clip_surgery_heads"))
def test_golden_points(case: Case) -> None:
    height, width = case["points_image_shape"].tolist()
    points, labels = sam_points(grid(case, case["similarity"])[0, 0], (height, width))
    np.testing.assert_array_equal(points, case.arrays["points_xy"])
    np.testing.assert_array_equal(labels, case.arrays["point_labels"])


def test_a_flat_map_gives_no_points() -> None:
    points, labels = sam_points(torch.full((7, 9), 0.3), (70, 90))
    assert points.shape == (0, 2)
    assert len(labels) == 0


def test_points_on_a_grid_that_is_not_square() -> None:
    scores = torch.zeros(6, 10)
    scores[4:, 6:8] = 1.0
    scores[0, 0] = -1.0
    points, labels = sam_points(scores, (60, 100))
    np.testing.assert_array_equal(points, [[70, 50], [10, 10]])
    np.testing.assert_array_equal(labels, [1, 0])


def test_a_golden_case_is_there() -> None:
    assert cases("clip_surgery_heads")
