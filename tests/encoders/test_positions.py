"""Resampled position embeddings against torch, a slow loop, and the published count rule."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.encoders.positions import PositionRule, resample_positions

TRAINED = (4, 4)


def embedding(prefix: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(prefix + TRAINED[0] * TRAINED[1], 3, generator=generator)


def cubic(t: float) -> list[float]:
    """Weights of the four neighbours at a fraction t, Keys' kernel with a = -0.75 as torch has it."""
    a = -0.75

    def near(x: float) -> float:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1

    def far(x: float) -> float:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a

    return [far(1 + t), near(t), near(1 - t), far(2 - t)]


def slow_bicubic(cells: Tensor, hw: tuple[int, int], scales: tuple[float, float]) -> Tensor:
    """Cell by cell from the formula; `scales` are old cells per new cell."""

    def taps(index: int, scale: float, size: int) -> list[tuple[int, float]]:
        centre = (index + 0.5) * scale - 0.5
        base = int(torch.tensor(centre).floor())
        weights = cubic(centre - base)
        return [(min(max(base + k - 1, 0), size - 1), weights[k]) for k in range(4)]

    grid = cells.reshape(*TRAINED, -1)
    out = torch.zeros(*hw, cells.shape[-1])
    for y in range(hw[0]):
        for x in range(hw[1]):
            for row, wy in taps(y, scales[0], TRAINED[0]):
                for col, wx in taps(x, scales[1], TRAINED[1]):
                    out[y, x] += wy * wx * grid[row, col]
    return out.flatten(0, 1)


@pytest.mark.parametrize("hw", [(2, 7), (7, 2), (5, 5), (3, 4), (1, 1)])
def test_offset_is_bicubic_by_scale_factor(hw: tuple[int, int]) -> None:
    positions = embedding()
    scales = tuple(old / (new + 0.1) for old, new in zip(TRAINED, hw, strict=True))
    ours = resample_positions(positions, TRAINED, hw, PositionRule("offset"))
    expected = torch.cat([positions[:1], slow_bicubic(positions[1:], hw, scales)])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("hw", [(2, 7), (7, 2), (5, 5)])
def test_size_is_bicubic_to_the_size(hw: tuple[int, int]) -> None:
    positions = embedding()
    scales = tuple(old / new for old, new in zip(TRAINED, hw, strict=True))
    ours = resample_positions(positions, TRAINED, hw, PositionRule("size"))
    expected = torch.cat([positions[:1], slow_bicubic(positions[1:], hw, scales)])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_bilinear_is_torch_bilinear() -> None:
    positions = embedding(prefix=0)
    grid = positions.T.reshape(1, 3, *TRAINED)
    expected = F.interpolate(grid, size=(3, 6), mode="bilinear", align_corners=False)[0].flatten(1).T
    ours = resample_positions(positions, TRAINED, (3, 6), PositionRule("bilinear"), num_prefix=0)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("mode", ["offset", "size", "bilinear"])
def test_prefix_rows_and_shape(mode, prefix: int) -> None:
    positions = embedding(prefix)
    ours = resample_positions(positions, TRAINED, (3, 7), PositionRule(mode), num_prefix=prefix)
    assert ours.shape == (prefix + 21, 3)
    assert torch.equal(ours[:prefix], positions[:prefix])


def test_every_size_up_to_forty_gets_its_cells() -> None:
    """The scale factor (n + 0.1) / old must round down to n, for every n."""
    positions = embedding()
    for new in range(1, 41):
        ours = resample_positions(positions, TRAINED, (new, 41 - new), PositionRule("offset"))
        assert len(ours) == 1 + new * (41 - new)


def test_count_rule_of_published_code() -> None:
    """A grid of another shape with as many cells: left alone as published, resampled otherwise."""
    positions = embedding()
    assert torch.equal(
        resample_positions(positions, TRAINED, (2, 8), PositionRule(as_published=True)), positions
    )
    ours = resample_positions(positions, TRAINED, (2, 8), PositionRule())
    assert (ours - positions).abs().max() > 0.1
    published = PositionRule(as_published=True)
    other = resample_positions(positions, TRAINED, (2, 7), published)
    assert torch.equal(other, resample_positions(positions, TRAINED, (2, 7), PositionRule()))


def test_same_grid_is_untouched_and_half_keeps_its_type() -> None:
    positions = embedding()
    assert resample_positions(positions, TRAINED, TRAINED, PositionRule()) is positions
    half = resample_positions(positions.bfloat16(), TRAINED, (2, 7), PositionRule())
    assert half.dtype == torch.bfloat16
