from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ovseg.errors import ConfigError, ShapeError
from ovseg.windows import WindowPlan, check_divisible, resized_hw, spans


@pytest.mark.parametrize(
    ("image_hw", "short", "expected"),
    [
        ((150, 200), 112, (112, 149)),
        ((37, 2000), 336, (38, 2048)),
        ((500, 375), 448, (597, 448)),
        ((10, 10), 7, (7, 7)),
    ],
)
def test_resized_hw(image_hw: tuple[int, int], short: int, expected: tuple[int, int]) -> None:
    assert resized_hw(image_hw, short) == expected


@pytest.mark.parametrize(
    ("length", "crop", "stride", "expected"),
    [
        (100, None, None, [(0, 100)]),
        (80, 100, 50, [(0, 80)]),
        (100, 100, 50, [(0, 100)]),
        (101, 100, 50, [(0, 100), (1, 101)]),
        (200, 100, 50, [(0, 100), (50, 150), (100, 200)]),
    ],
)
def test_spans(length: int, crop: int | None, stride: int | None, expected: list[tuple[int, int]]) -> None:
    assert spans(length, crop, stride) == expected


PLANS = [
    WindowPlan(),
    WindowPlan(via_input=True),
    WindowPlan(48, 20),
    WindowPlan(48, 48, fit="pad"),
    WindowPlan(40, 16, fit="pad", multiple=56),
    WindowPlan(40, 24, fit="pad_end", pad_with="black"),
    WindowPlan(None, fit="pad"),
]


def slow_picture(plan: WindowPlan, grids: torch.Tensor, image_hw, output_hw) -> torch.Tensor:
    """The published way: upsample each window, add, divide by the visits, resize."""
    windows = plan.windows(image_hw, (16, 16))
    rows, cols = windows.rows, windows.cols
    total, visits = torch.zeros(grids.shape[1], *image_hw), torch.zeros(*image_hw)
    for grid, (top, left, bottom, right) in zip(grids, windows.boxes_yxyx, strict=True):
        height, width = bottom - top, right - left
        if plan.fit == "pad":
            padded = (height + rows.before + rows.after, width + cols.before + cols.after)
            up = F.interpolate(grid[None], size=padded, mode="bilinear", align_corners=False)[0]
            up = up[:, rows.before : rows.before + height, cols.before : cols.before + width]
        else:
            up = F.interpolate(grid[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        total[:, top:bottom, left:right] += up
        visits[top:bottom, left:right] += 1
    return F.interpolate((total / visits)[None], size=output_hw, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("plan", [p for p in PLANS if p.crop or p.via_input or p.fit == "pad"])
def test_mosaic_equals_the_slow_way(plan: WindowPlan) -> None:
    image_hw, output_hw = (70, 109), (90, 121)
    windows = plan.windows(image_hw, (16, 16))
    pieces = windows.cut(torch.rand(1, 3, *image_hw), torch.full((3, 1, 1), 0.4))
    cells = (pieces.shape[-2] // 16, pieces.shape[-1] // 16)
    grids = torch.randn(len(pieces), 4, *cells)
    ours = windows.resampling(image_hw, cells, output_hw).apply(windows.join(grids)[0])
    torch.testing.assert_close(ours, slow_picture(plan, grids, image_hw, output_hw), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("image_hw", [(70, 109), (64, 96), (37, 300), (16, 16)])
def test_windows_fit_the_encoder(plan: WindowPlan, image_hw: tuple[int, int]) -> None:
    windows = plan.windows(image_hw, (16, 16))
    pieces = windows.cut(torch.rand(2, 3, *image_hw), torch.full((3, 1, 1), 0.4))
    multiple = plan.multiple or 16
    if plan.fit != "floor":
        assert pieces.shape[-2] % multiple == 0
        assert pieces.shape[-1] % multiple == 0
    assert len(pieces) == 2 * len(windows.boxes_yxyx)


def test_padding_is_mean_or_black() -> None:
    mean = torch.tensor([0.2, 0.5, 0.7]).view(3, 1, 1)
    image = torch.ones(1, 3, 20, 20)
    for pad_with, expected in (("mean", mean.flatten()), ("black", torch.zeros(3))):
        plan = WindowPlan(None, fit="pad_end", pad_with=pad_with)
        piece = plan.windows((20, 20), (16, 16)).cut(image, mean)[0]
        assert tuple(piece.shape) == (3, 32, 32)
        torch.testing.assert_close(piece[:, -1, -1], expected)


def test_join_keeps_windows_in_place() -> None:
    windows = WindowPlan(32, 32).windows((64, 96), (16, 16))
    numbered = torch.arange(12.0).reshape(12, 1, 1, 1).expand(12, 1, 2, 2)
    mosaic = windows.join(numbered)
    assert tuple(mosaic.shape) == (2, 1, 4, 6)
    assert mosaic[0, 0, ::2, ::2].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert mosaic[1, 0, ::2, ::2].tolist() == [[6, 7, 8], [9, 10, 11]]


def test_bad_plans_say_why() -> None:
    for options, message in (
        (dict(crop=0), "at least 1"),
        (dict(crop=10), "stride"),
        (dict(crop=10, stride=11), "no gap"),
        (dict(max_batch=0), "max_batch"),
    ):
        with pytest.raises(ConfigError, match=message):
            WindowPlan(**options)


def test_indivisible_image_states_the_fix() -> None:
    with pytest.raises(ShapeError, match="368x496"):
        check_divisible((375, 500), (16, 16))


def test_regions_are_cut_like_the_pixels() -> None:
    ids = torch.arange(70 * 93).reshape(1, 70, 93)
    image = (ids[:, None].expand(-1, 3, -1, -1) / 10000).float()
    windows = WindowPlan(56, 40, fit="pad", multiple=24).windows((70, 93), (16, 16))
    pixels, regions = windows.cut(image, torch.full((3, 1, 1), 0.5)), windows.cut_regions(ids, -1)
    inside = regions >= 0
    assert regions.shape == pixels[:, 0].shape
    assert not inside.all()
    torch.testing.assert_close(pixels[:, 0], torch.where(inside, regions / 10000, 0.5))
