from __future__ import annotations

import torch
from support import random_bank

from ovseg.refine.pamr import PAMR
from ovseg.resampling import Resampling
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures, Pictures


def score_map(batch: int = 2, size=(13, 21)) -> ScoreMap:
    torch.manual_seed(1)
    bank = random_bank()
    return ScoreMap(torch.randn(batch, 7, 3, 5).tanh(), bank, 20.0, Resampling.bilinear((3, 5), size))


def features(image: torch.Tensor) -> DenseFeatures:
    """What PAMR reads of an image: its colours."""
    grid = torch.zeros(len(image), 4, 3, 5)
    return DenseFeatures(grid, Resampling.bilinear((3, 5), (13, 21)), pictures=Pictures(image))


def pictures(m: ScoreMap) -> torch.Tensor:
    return torch.stack([m.pictures(i, m.cosine[i], m.image_hw) for i in range(len(m))])


def slow_step(image: torch.Tensor, maps: torch.Tensor, dilations: tuple[int, ...]) -> torch.Tensor:
    """One step, pixel by pixel, from the formula."""
    _, height, width = image.shape
    result = torch.zeros_like(maps)
    for y in range(height):
        for x in range(width):
            near, with_centre = [], []
            for d in dilations:
                for dy in (-d, 0, d):
                    for dx in (-d, 0, d):
                        v, u = min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)
                        with_centre.append(image[:, v, u])
                        if (dy, dx) != (0, 0):
                            near.append((v, u))
            std = torch.stack(with_centre).std(0)
            logits = torch.stack(
                [-((image[:, y, x] - image[:, v, u]).abs() / (1e-8 + 0.1 * std)).mean() for v, u in near]
            )
            weights = logits.softmax(0)
            result[:, y, x] = sum(w * maps[:, v, u] for w, (v, u) in zip(weights, near, strict=True))
    return result


def test_equals_the_formula() -> None:
    m, image = score_map(1), torch.rand(1, 3, 13, 21)
    ours = pictures(PAMR(2, (1, 3))(m, features(image)))[0]
    slow = m.resampling.apply(m.cosine[0])
    for _ in range(2):
        slow = slow_step(image[0], slow, (1, 3))
    torch.testing.assert_close(ours, slow, atol=1e-5, rtol=1e-4)


def test_flat_image_is_finite_and_keeps_constants() -> None:
    m = score_map()
    assert pictures(PAMR(3)(m, features(torch.full((2, 3, 13, 21), 0.5)))).isfinite().all()
    constant = ScoreMap(torch.full((2, 7, 3, 5), 0.3), m.bank, 20.0, m.resampling)
    refined = pictures(PAMR(3)(constant, features(torch.rand(2, 3, 13, 21))))
    torch.testing.assert_close(refined, torch.full((2, 7, 13, 21), 0.3))


def test_colour_scale_does_not_matter() -> None:
    m, image = score_map(), torch.rand(2, 3, 13, 21)
    scaled = image * torch.tensor([3.7, 3.6, 3.5]).view(3, 1, 1) - 1.8
    torch.testing.assert_close(
        pictures(PAMR(4)(m, features(scaled))), pictures(PAMR(4)(m, features(image))), atol=1e-4, rtol=1e-4
    )


def test_alone_equals_in_a_batch_and_zero_steps_change_nothing() -> None:
    m, image = score_map(), torch.rand(2, 3, 40, 30)
    refined = PAMR(2)(m, features(image))
    torch.testing.assert_close(pictures(PAMR(2)(m.select(1), features(image[1:])))[0], pictures(refined)[1])
    torch.testing.assert_close(pictures(refined.select(1))[0], pictures(refined)[1])
    assert PAMR(0)(m, features(image)) is m
