from __future__ import annotations

import pytest
import torch

from ovseg.correlation.self_correction import local_outlier_factor, outliers, repair
from ovseg.errors import ConfigError


def slow_factor(tokens: torch.Tensor, k: int) -> list[float]:
    """Token by token, from the formula."""
    squared = [[float(((a - b) ** 2).sum()) for b in tokens] for a in tokens]
    order = [sorted((d, j) for j, d in enumerate(row) if j != i)[:k] for i, row in enumerate(squared)]
    density = [k / (sum(max(d, near[-1][0]) for d, _ in near) / k) for near in order]
    return [sum(density[j] / density[i] for _, j in near) / k for i, near in enumerate(order)]


def test_factor_equals_the_formula() -> None:
    tokens = torch.randn(2, 20, 5)
    tokens[1, 3] *= 6
    ours = local_outlier_factor(tokens, 4)
    for each, factor in zip(tokens, ours, strict=True):
        torch.testing.assert_close(factor, torch.tensor(slow_factor(each, 4)), atol=1e-4, rtol=1e-4)
    assert ours[1].argmax() == 3


@pytest.mark.parametrize("count", [1, 2, 7, 31])
def test_few_tokens_have_fewer_neighbours(count: int) -> None:
    tokens = torch.randn(2, count, 5)
    factor = local_outlier_factor(tokens)
    assert factor.isfinite().all()
    if count > 1:
        assert torch.equal(factor, local_outlier_factor(tokens, min(30, count - 1)))


def test_equal_tokens_are_no_outliers() -> None:
    assert not outliers(torch.ones(2, 50, 8)).any()


def test_near_tokens_keep_their_digits() -> None:
    """Far from the origin and next to each other, where a matrix product would cancel."""
    near = torch.randn(1, 40, 8).double() * 1e-2
    far = local_outlier_factor((near + 100).float())
    torch.testing.assert_close(far, local_outlier_factor(near.float()), atol=2e-2, rtol=2e-2)


def test_outliers_are_a_share_of_each_image() -> None:
    tokens = torch.randn(3, 100, 8)
    found = outliers(tokens, neighbours=10, share=0.1)
    assert found.sum(dim=1).tolist() == [10, 10, 10]
    assert not outliers(tokens, neighbours=10, share=0.0).any()
    for each, together in zip(tokens, found, strict=True):
        assert torch.equal(outliers(each[None], neighbours=10, share=0.1)[0], together)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="neighbours >= 1"):
        outliers(torch.randn(1, 9, 4), neighbours=0)
    with pytest.raises(ConfigError, match="share"):
        outliers(torch.randn(1, 9, 4), share=1.0)


def test_repair_takes_the_mean_of_sound_neighbours() -> None:
    grid = torch.randn(1, 2, 4, 6)
    broken = torch.zeros(1, 4, 6, dtype=torch.bool)
    broken[0, 0, 5] = broken[0, 1, 5] = True  # a corner and its neighbour
    fixed = repair(grid, broken)
    assert torch.equal(fixed[:, :, ~broken[0]], grid[:, :, ~broken[0]])
    torch.testing.assert_close(fixed[0, :, 0, 5], (grid[0, :, 0, 4] + grid[0, :, 1, 4]) / 2)
    torch.testing.assert_close(
        fixed[0, :, 1, 5], (grid[0, :, 0, 4] + grid[0, :, 1, 4] + grid[0, :, 2, 4] + grid[0, :, 2, 5]) / 4
    )


def test_cells_without_sound_neighbours_stay() -> None:
    grid = torch.randn(1, 3, 2, 2)
    everything = torch.ones(1, 2, 2, dtype=torch.bool)
    assert torch.equal(repair(grid, everything), grid)
    assert repair(grid.half(), ~everything).dtype == torch.float16
