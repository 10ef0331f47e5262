"""Pixel-adaptive mask refinement: scores flow between neighbouring pixels of similar colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.structures import Resampling, ScoreMap

#: Query maps refined at once, in floats (64 MiB).
CHUNK_ELEMENTS = 16 * 2**20


class PAMR(nn.Module):
    """Averages each pixel's scores over its dilated 8-neighbourhoods, weighted by colour similarity.

    With `w = softmax_j mean_c(-|I_c - I_c(j)| / (0.1 std_c))`, repeats `m <- sum_j w_j m(j)`; the centre is
    not among the neighbours. Works at full image size, so memory is queries times pixels.

    Source: Araslanov and Roth, arXiv 2005.08104, section 3.3; settings as in NACLIP (10 steps) and SCLIP (0).
    Colours need no normalisation: the weights do not change when a channel is scaled or shifted.

    Args:
        steps: how often.
        dilations: distances of the neighbours in pixels.
    """

    def __init__(self, steps: int = 10, dilations: Sequence[int] = (8, 16)) -> None:
        super().__init__()
        self.steps = steps
        self.dilations = tuple(dilations)

    def forward(self, score_map: ScoreMap, image: Float[Tensor, "B 3 H W"]) -> ScoreMap:
        """A score map at `score_map.image_hw` whose cosines are refined.

        Args:
            score_map: of the images.
            image: RGB in [0, 1], any size.
        """
        if not self.steps:
            return score_map
        size_hw = score_map.image_hw
        if (image.shape[-2], image.shape[-1]) != size_hw:
            image = F.interpolate(image, size=size_hw, mode="bilinear", align_corners=False)
        refined = []
        per_chunk = max(CHUNK_ELEMENTS // (size_hw[0] * size_hw[1]), 1)
        for cosine, pixels in zip(score_map.cosine.float(), image.float(), strict=True):
            weights = self.weights(pixels)
            maps = [self._spread(score_map.resampling.apply(part), weights) for part in cosine.split(per_chunk)]
            refined.append(torch.cat(maps))
        identity = Resampling.bilinear(size_hw, size_hw).to(score_map.cosine.device)
        return replace(score_map, cosine=torch.stack(refined), resampling=identity)

    def weights(self, image: Float[Tensor, "3 H W"]) -> Float[Tensor, "J H W"]:
        """The weight of each of the J = 8 x dilations neighbours; they sum to 1 over J."""
        with_centre = [torch.stack([image, *self._neighbours(image, d)]) for d in self.dilations]
        std = torch.cat(with_centre).std(dim=0)
        neighbours = torch.cat([each[1:] for each in with_centre])
        return (-(image - neighbours).abs() / (1e-8 + 0.1 * std)).mean(dim=1).softmax(dim=0)

    def _spread(self, maps: Float[Tensor, "Q H W"], weights: Float[Tensor, "J H W"]) -> Float[Tensor, "Q H W"]:
        for _ in range(self.steps):
            neighbours = (each for d in self.dilations for each in self._neighbours(maps, d))
            total = torch.zeros_like(maps)
            for weight, values in zip(weights, neighbours, strict=True):
                total.addcmul_(weight.expand_as(values), values)
            maps = total
        return maps

    @staticmethod
    def _neighbours(maps: Float[Tensor, "C H W"], distance: int) -> Iterator[Float[Tensor, "C H W"]]:
        """The 8 neighbours at a distance, row by row, borders replicated."""
        height, width = maps.shape[-2:]
        padded = F.pad(maps[None], (distance,) * 4, mode="replicate")[0]
        for y in (0, distance, 2 * distance):
            for x in (0, distance, 2 * distance):
                if (y, x) != (distance, distance):
                    yield padded[:, y : y + height, x : x + width]
