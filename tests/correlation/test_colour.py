"""The colour guide and its affinity: the promises of all correlations, and the formula written slowly."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from contracts import CorrelationContract, random_block

from ovseg.correlation.colour import ColourCorrelation, ColourGuide
from ovseg.errors import ConfigError, ShapeError
from ovseg.structures import Affinity, OpenBlock, PatchFeatures


def as_guide(block: OpenBlock) -> PatchFeatures:
    """A block's values as a guide's features, so that the contract's blocks do for both."""
    patches = block.v[:, 0, block.num_prefix :].mT.unflatten(-1, block.hw)
    return PatchFeatures(patches, patches.new_zeros(len(patches), 0, patches.shape[1]), block.image_hw)


class TestColour(CorrelationContract):
    def build(self) -> ColourCorrelation:
        return ColourCorrelation(2.0, 20.0)

    def affinity(self, block: OpenBlock) -> Affinity:
        """Prefix tokens, of which a guide's affinity has none, keep to themselves."""
        found = self.build()(block, as_guide(block))
        assert found.num_prefix == 0
        count = block.num_prefix
        matrix = F.pad(found.weights, (count, 0, count, 0))
        matrix[..., :count, :count] = torch.eye(count)
        return Affinity(found.hw, count, matrix=matrix)


@pytest.mark.parametrize("std_px", [None, 12.0])
def test_formula(std_px: float | None) -> None:
    image = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    block = random_block(batch=1, hw=(2, 2))
    ours = ColourCorrelation(0.2, std_px)(block, ColourGuide(8)(image))
    assert (ours.hw, ours.num_prefix) == ((3, 4), 0)
    cells = [(y, x) for y in range(3) for x in range(4)]
    colour = {(y, x): image[0, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].mean(dim=(1, 2)) for y, x in cells}
    for i, a in enumerate(cells):
        logits = []
        for b in cells:
            logit = -float((colour[a] - colour[b]).square().sum()) / (2 * 0.2**2)
            if std_px is not None:
                logit -= 64 * ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (2 * std_px**2)
            logits.append(logit)
        weights = torch.tensor(logits).softmax(0)
        torch.testing.assert_close(ours.weights[0, 0, i], weights, atol=1e-6, rtol=1e-4)


def test_texture_is_the_spread_within_a_cell() -> None:
    image = torch.rand(2, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    grid = ColourGuide(8, texture=0.5)(image).grid
    spread = image.unflatten(-1, (2, 8)).std(dim=(2, 4), correction=0)
    torch.testing.assert_close(grid[:, 3:, 0], 0.5 * spread, atol=1e-4, rtol=1e-4)
    flat = ColourGuide(8, texture=0.5)(torch.full((1, 3, 8, 16), 0.3)).grid
    assert flat[:, 3:].abs().max() < 1e-3


def test_oklab_of_known_colours() -> None:
    colours = {"white": (1, 1, 1), "red": (1, 0, 0), "black": (0, 0, 0)}
    image = torch.tensor(list(colours.values())).float().T[None, :, None, :]
    lab = ColourGuide(1, space="oklab")(image).grid[0, :, 0].T
    expected = torch.tensor([[1.0, 0.0, 0.0], [0.62796, 0.22486, 0.12585], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(lab, expected, atol=1e-3, rtol=0)


def test_mistakes() -> None:
    block = random_block()
    with pytest.raises(ConfigError, match="needs a ColourGuide"):
        ColourCorrelation(0.1)(block)
    for bad in (dict(std_colour=0.0), dict(std_colour=0.1, std_px=-1.0)):
        with pytest.raises(ConfigError, match="above 0"):
            ColourCorrelation(**bad)
    for bad in (dict(cell_px=0), dict(texture=-1.0)):
        with pytest.raises(ConfigError):
            ColourGuide(**bad)
    with pytest.raises(ShapeError, match="patch size 8x8"):
        ColourGuide(8)(torch.zeros(1, 3, 12, 16))
    assert math.isfinite(float(ColourCorrelation(0.01)(block, as_guide(block)).weights.sum()))
