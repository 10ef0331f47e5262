from __future__ import annotations

import pytest
import torch
from support import random_bank

from ovseg.errors import ConfigError
from ovseg.refine.par import PAR, gaussian_weights
from ovseg.resampling import Resampling
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures, Pictures


def score_map(batch: int = 2, size: tuple[int, int] = (13, 21)) -> ScoreMap:
    torch.manual_seed(1)
    resampling = Resampling.bilinear((3, 5), size)
    return ScoreMap(torch.randn(batch, 7, 3, 5).tanh(), random_bank(), 20.0, resampling)


def refined(par: PAR, m: ScoreMap, image: torch.Tensor) -> torch.Tensor:
    features = DenseFeatures(torch.zeros(len(m), 4, 3, 5), m.resampling, pictures=Pictures(image))
    after = par(m, features)
    return torch.stack([after.pictures(i, m.cosine[i], m.image_hw) for i in range(len(m))])


def slow_step(image: torch.Tensor, maps: torch.Tensor, dilations: tuple[int, ...]) -> torch.Tensor:
    """One step, pixel by pixel, from the formula."""
    _, height, width = image.shape
    steps = [(y, x) for d in dilations for y in (-d, 0, d) for x in (-d, 0, d) if (y, x) != (0, 0)]
    far = torch.tensor([(y * y + x * x) ** 0.5 for y, x in steps])
    by_distance = (-((far / far.std() / 0.3) ** 2)).softmax(0)
    result = torch.zeros_like(maps)
    for y in range(height):
        for x in range(width):
            near = [(min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)) for dy, dx in steps]
            std = torch.stack([image[:, v, u] for v, u in near]).std(0)
            logits = [
                -(((image[:, y, x] - image[:, v, u]).abs() / (std + 1e-8) / 0.3) ** 2).mean() for v, u in near
            ]
            weights = (torch.stack(logits).softmax(0) + 0.01 * by_distance) / 1.01
            result[:, y, x] = sum(w * maps[:, v, u] for w, (v, u) in zip(weights, near, strict=True))
    return result


def test_equals_the_formula() -> None:
    m, image = score_map(1, (6, 9)), torch.rand(1, 3, 6, 9)
    slow = m.resampling.apply(m.cosine[0])
    for _ in range(2):
        slow = slow_step(image[0], slow, (1, 3))
    torch.testing.assert_close(refined(PAR(2, (1, 3)), m, image)[0], slow, atol=1e-5, rtol=1e-4)


def test_weights_are_shares() -> None:
    weights = gaussian_weights(torch.rand(3, 30, 17), (1, 2, 4))
    assert weights.shape == (24, 30, 17)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(30, 17))


def test_flat_image_is_finite_and_keeps_constants() -> None:
    m = score_map()
    assert refined(PAR(3), m, torch.full((2, 3, 13, 21), 0.5)).isfinite().all()
    constant = ScoreMap(torch.full((2, 7, 3, 5), 0.3), m.bank, 20.0, m.resampling)
    torch.testing.assert_close(
        refined(PAR(3), constant, torch.rand(2, 3, 13, 21)), torch.full((2, 7, 13, 21), 0.3)
    )


def test_edges_of_colour_hold_scores_back() -> None:
    image = torch.zeros(1, 3, 16, 32)
    image[..., 16:] = 1.0
    maps = torch.zeros(1, 16, 32)
    maps[..., :12] = 1.0  # the left colour, not quite to its edge
    after = PAR(20, (1, 2, 4)).spread(image[0] + 0.01 * torch.rand(3, 16, 32))(maps)[0]
    assert after[:, 15].mean() > 0.5
    assert after[:, 16].mean() < 0.1


def test_alone_equals_in_a_batch_and_zero_steps_change_nothing() -> None:
    m, image = score_map(), torch.rand(2, 3, 40, 30)
    together = refined(PAR(2), m, image)
    torch.testing.assert_close(refined(PAR(2), m.select(1), image[1:])[0], together[1])
    features = DenseFeatures(torch.zeros(2, 4, 3, 5), m.resampling, pictures=Pictures(image))
    assert PAR(0)(m, features) is m


def test_what_it_needs_is_named() -> None:
    with pytest.raises(ConfigError, match="dilations >= 1"):
        PAR(2, (0, 1))
    m = score_map()
    with pytest.raises(ConfigError, match="without their pictures"):
        PAR()(m, DenseFeatures(torch.zeros(2, 4, 3, 5), m.resampling))
