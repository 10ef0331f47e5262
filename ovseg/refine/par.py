"""Pixel-adaptive refinement (PAR): PAMR with Gaussian weights, more rings and a term of distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.errors import ConfigError
from ovseg.refine.pamr import ColourSpread, neighbours
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures

#: Widths of both Gaussians, in standard deviations of the neighbours; share of the term of distance.
WIDTH, DISTANCE_SHARE = 0.3, 0.01


class PAR(nn.Module):
    """Averages each pixel's scores over rings of neighbours, weighted by colour and a little by distance.

    With `w = softmax_j(-mean_c (|I_c - I_c(j)| / (0.3 std_c))^2) + 0.01 softmax_j(-(r_j / (0.3 std_r))^2)`,
    repeats `m <- sum_j w_j m(j)`; standard deviations are over the neighbours, the centre is not among them.

    Source: Ru et al., arXiv 2203.02664 (AFA), section 3.4; settings as in github.com/zwyang6/ExCEL at
    2cd7f510. Colours need no normalisation, as in PAMR.
    Deviations: the weights are divided by their sum 1.01, so that scores keep their range; no argmax changes.

    Args:
        steps: how often.
        dilations: distances of the neighbours in pixels.
    """

    def __init__(self, steps: int = 20, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24)) -> None:
        super().__init__()
        if steps < 0 or not dilations or min(dilations) < 1:
            raise ConfigError(f"PAR takes steps >= 0 and dilations >= 1, got {steps} and {tuple(dilations)}")
        self.steps = steps
        self.dilations = tuple(dilations)

    def forward(self, score_map: ScoreMap, features: DenseFeatures) -> ScoreMap:
        """The score map with one spread for each image.

        Args:
            score_map: of the images.
            features: their pictures are read.
        """
        if not self.steps:
            return score_map
        if features.pictures is None:
            raise ConfigError("PAR reads colours, and these features came without their pictures")
        size_hw, image = score_map.image_hw, features.pictures.image
        if (image.shape[-2], image.shape[-1]) != size_hw:
            image = F.interpolate(image, size=size_hw, mode="bilinear", align_corners=False)
        return replace(score_map, spreads=tuple(self.spread(each) for each in image))

    def spread(self, image: Float[Tensor, "3 H W"]) -> ColourSpread:
        """What spreads any maps over one image of their size."""
        return ColourSpread(gaussian_weights(image, self.dilations), self.steps, self.dilations)


def gaussian_weights(image: Float[Tensor, "3 H W"], dilations: Sequence[int]) -> Float[Tensor, "J H W"]:
    """How much each pixel listens to each neighbour; they sum to 1 over the J of them."""
    count = 8 * len(dilations)
    mean = sum(neighbours(image, dilations), torch.zeros_like(image)) / count
    squares = ((each - mean).square() for each in neighbours(image, dilations))
    std = (sum(squares, torch.zeros_like(image)) / (count - 1)).sqrt()
    sharpness = 1 / ((std + 1e-8) * WIDTH)
    by_colour = torch.stack(
        [-((image - each) * sharpness).square().mean(dim=0) for each in neighbours(image, dilations)]
    ).softmax(dim=0)
    ring = torch.tensor([2**0.5, 1, 2**0.5, 1, 1, 2**0.5, 1, 2**0.5], device=image.device)
    distances = torch.cat([ring * each for each in dilations])
    by_distance = (-(distances / (distances.std() + 1e-8) / WIDTH).square()).softmax(dim=0)
    return (by_colour + DISTANCE_SHARE * by_distance[:, None, None]) / (1 + DISTANCE_SHARE)
