"""Pixel-adaptive mask refinement: scores flow between neighbouring pixels of similar colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.errors import ConfigError
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures


class PAMR(nn.Module):
    """Averages each pixel's scores over its dilated 8-neighbourhoods, weighted by colour similarity.

    With `w = softmax_j mean_c(-|I_c - I_c(j)| / (0.1 std_c))`, repeats `m <- sum_j w_j m(j)`; the centre is
    not among the neighbours. Works at full image size on a few queries at a time: memory grows with pixels
    (16 weights each), time with queries times pixels.

    Source: Araslanov and Roth, arXiv 2005.08104, section 3.3; settings as in NACLIP (10 steps) and SCLIP (0).
    Colours need no normalisation: the weights do not change when a channel is scaled or shifted.

    Args:
        steps: how often.
        dilations: distances of the neighbours in pixels.
    """

    def __init__(self, steps: int = 10, dilations: Sequence[int] = (8, 16)) -> None:
        super().__init__()
        if steps < 0 or not dilations or min(dilations) < 1:
            raise ConfigError(f"PAMR takes steps >= 0 and dilations >= 1, got {steps} and {tuple(dilations)}")
        self.steps = steps
        self.dilations = tuple(dilations)

    def forward(self, score_map: ScoreMap, features: DenseFeatures) -> ScoreMap:
        """The score map with one spread for each image.

        Args:
            score_map: of the images.
            features: their pictures are read; the resized ones, as published.
        """
        if not self.steps:
            return score_map
        if features.pictures is None:
            raise ConfigError("PAMR reads colours, and these features came without their pictures")
        size_hw, image = score_map.image_hw, features.pictures.image
        if (image.shape[-2], image.shape[-1]) != size_hw:
            image = F.interpolate(image, size=size_hw, mode="bilinear", align_corners=False)
        spreads = (
            ColourSpread(colour_weights(each, self.dilations), self.steps, self.dilations) for each in image
        )
        return replace(score_map, spreads=tuple(spreads))


@dataclass(frozen=True)
class ColourSpread:
    """PAMR for one image, ready for any maps.

    Attributes:
        weights: of the J = 8 x dilations neighbours `(J, H, W)`, summing to 1 over J.
        steps: how often.
        dilations: distances of the neighbours in pixels.
    """

    weights: Float[Tensor, "J H W"]
    steps: int
    dilations: tuple[int, ...]

    def __call__(self, maps: Float[Tensor, "Q H W"]) -> Float[Tensor, "Q H W"]:
        """The maps, spread `steps` times."""
        for _ in range(self.steps):
            total = torch.zeros_like(maps)
            for weight, values in zip(self.weights, neighbours(maps, self.dilations), strict=True):
                total.addcmul_(weight.expand_as(values), values)
            maps = total
        return maps


def colour_weights(image: Float[Tensor, "3 H W"], dilations: Sequence[int]) -> Float[Tensor, "J H W"]:
    """How much each pixel listens to each neighbour: a softmax over the J of them."""
    count = 9 * len(dilations)  # the centre counts once for every dilation
    centres = len(dilations)
    mean = sum(neighbours(image, dilations), centres * image) / count
    squares = ((each - mean).square() for each in neighbours(image, dilations))
    std = (sum(squares, centres * (image - mean).square()) / (count - 1)).sqrt()
    sharpness = 1 / (1e-8 + 0.1 * std)
    logits = [-((image - each).abs() * sharpness).mean(dim=0) for each in neighbours(image, dilations)]
    return torch.stack(logits).softmax(dim=0)


def neighbours(maps: Float[Tensor, "C H W"], dilations: Sequence[int]) -> Iterator[Float[Tensor, "C H W"]]:
    """The 8 neighbours at each distance, row by row, borders replicated."""
    height, width = maps.shape[-2:]
    for distance in dilations:
        padded = F.pad(maps[None], (distance,) * 4, mode="replicate")[0]
        for y in (0, distance, 2 * distance):
            for x in (0, distance, 2 * distance):
                if (y, x) != (distance, distance):
                    yield padded[:, y : y + height, x : x + width]
