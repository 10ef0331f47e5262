"""Windows in numpy are those of torch; traced positions are those of `interpolate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import get_args

import numpy as np
import pytest
import torch
from support import random_image

from ovseg import windows
from ovseg.encoders.positions import PositionMode, PositionRule, resample_positions
from ovseg.encoders.traced_positions import resample_traced
from ovseg.export import mosaic
from ovseg.windows import WindowPlan

PLANS = [
    WindowPlan(),
    WindowPlan(via_input=True),
    WindowPlan(48, 16),
    WindowPlan(48, 32, fit="pad", multiple=56),
    WindowPlan(64, 40, fit="pad_end", pad_with="black", via_input=True),
    WindowPlan(None, None, fit="pad", multiple=24),
]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("image_hw", [(64, 100), (48, 48), (131, 57), (9, 70)])
def test_windows_agree_with_torch(plan: WindowPlan, image_hw: tuple[int, int]) -> None:
    patch_hw, mean = (16, 16), (0.25, 0.5, 0.75)
    image = random_image(*image_hw)
    theirs = plan.windows(image_hw, patch_hw)
    ours = mosaic.Mosaic.of(image_hw, asdict(plan), patch_hw)
    pixels = image.astype(np.float32) / 255
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    wanted = theirs.cut(batch, torch.tensor(mean).view(3, 1, 1))
    assert np.allclose(ours.cut(pixels, mean), wanted.numpy(), atol=1e-6)
    grids = torch.rand(len(wanted), 2, 3, 4)
    assert np.array_equal(ours.join(grids.numpy()), theirs.join(grids)[0].numpy())
    for output_hw in (image_hw, (37, 90)):
        resampling = theirs.resampling(image_hw, (3, 4), output_hw)
        rows, cols = ours.resampling((3, 4), output_hw)
        assert np.allclose(rows, resampling.rows.numpy(), atol=1e-5)
        assert np.allclose(cols, resampling.cols.numpy(), atol=1e-5)


@pytest.mark.parametrize("size_hw", [(30, 41), (64, 100), (128, 200), (51, 333)])
def test_resized_bytes_agree_with_opencv(size_hw: tuple[int, int]) -> None:
    image = random_image(64, 100)
    ours, theirs = mosaic.resize_image(image, size_hw), windows.resize_image(image, size_hw)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.01
    for short_side in (20, 336, 3000):
        assert mosaic.resized_hw(size_hw, short_side) == windows.resized_hw(size_hw, short_side)


@pytest.mark.parametrize("mode", get_args(PositionMode))
@pytest.mark.parametrize("hw", [(5, 7), (5, 9), (3, 4), (14, 2), (11, 23)])
def test_traced_positions_agree_with_interpolate(mode: PositionMode, hw: tuple[int, int]) -> None:
    embedding = torch.randn(1 + 5 * 7, 6)
    wanted = resample_positions(embedding, (5, 7), hw, PositionRule(mode))[1:]
    grid = embedding[1:].T.unflatten(1, (5, 7))
    assert torch.allclose(resample_traced(grid, hw, mode).flatten(1).T, wanted, atol=1e-5)
