"""Scores of "abnormal" to an anomaly map at the image's own size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from scipy import ndimage
from torch import Tensor, nn

from ovseg.anomaly_results import AnomalyMap, AnomalyThreshold
from ovseg.anomaly_structures import AnomalyScores
from ovseg.errors import ConfigError, VocabularyError
from ovseg.score_map import ScoreMap

#: What an image's score is: the method's own (the greatest pixel where it has none), the greatest pixel, or
#: the mean of the top 1 % of pixels.
ImageScore = Literal["given", "max", "top"]

TOP_SHARE = 0.01


class AnomalyHead(nn.Module):
    """One result per image: map, score, and by a threshold label and mask.

    Args:
        threshold: see `AnomalyThreshold`; None gives no labels and no masks.
        sigma_px: standard deviation of a Gaussian over the full-size map, in pixels; 0 for none. Published:
            4 (AnomalyCLIP, AnomalyDINO), 8 (VCP-CLIP), 0 (WinCLIP).
        image_score: see `ImageScore`; pixels are taken after smoothing.
        abnormal: which class of a score map speaks for damage.
    """

    def __init__(
        self,
        *,
        threshold: AnomalyThreshold | None = None,
        sigma_px: float = 0.0,
        image_score: ImageScore = "given",
        abnormal: str = "abnormal",
    ) -> None:
        super().__init__()
        if not 0 <= sigma_px < float("inf"):
            raise ConfigError(f"sigma_px is a standard deviation in pixels, at least 0, got {sigma_px}")
        if image_score not in get_args(ImageScore):
            raise ConfigError(
                f"image_score must be one of {', '.join(get_args(ImageScore))}, got '{image_score}'"
            )
        self.threshold = threshold
        self.sigma_px = sigma_px
        self.image_score: ImageScore = image_score
        self.abnormal = abnormal

    def forward(
        self, found: AnomalyScores | ScoreMap, size_hw: tuple[int, int] | None = None
    ) -> list[AnomalyMap]:
        """One result per image.

        Args:
            found: what an anomaly method or a memory bank gives, or a score map whose classes are states of
                the thing, such as normal and abnormal.
            size_hw: size of the maps, by default that of `found`.

        Raises:
            VocabularyError: the score map has no class of the name `abnormal`.
        """
        pairs = self._words(found, size_hw) if isinstance(found, ScoreMap) else self._scored(found, size_hw)
        return [self._result(heat, score) for heat, score in pairs]

    def _result(self, heat: Float[Tensor, "H W"], score: float | None) -> AnomalyMap:
        pixels = heat.detach().float().cpu().numpy()
        if self.sigma_px:
            pixels = ndimage.gaussian_filter(pixels, self.sigma_px)
        if self.image_score == "top":
            score = top_mean(pixels)
        elif score is None or self.image_score == "max":
            score = float(pixels.max())
        return AnomalyMap(pixels, score, self.threshold)

    @staticmethod
    def _scored(
        found: AnomalyScores, size_hw: tuple[int, int] | None
    ) -> Iterator[tuple[Float[Tensor, "H W"], float]]:
        height, width = size_hw or found.map.shape[1:]
        for index in range(len(found.map)):  # one at a time: B full-size maps are never held
            one = slice(index, index + 1)
            part = AnomalyScores(found.map[one], found.score[one], found.align_corners)
            yield part.resized((height, width)).map[0], float(found.score[index])

    def _words(
        self, found: ScoreMap, size_hw: tuple[int, int] | None
    ) -> Iterator[tuple[Float[Tensor, "H W"], None]]:
        names = found.bank.names
        if self.abnormal not in names or len(names) < 2:
            raise VocabularyError(
                f"an anomaly vocabulary has a class '{self.abnormal}' and at least one other, got: "
                f"{', '.join(names[:8])}"
            )
        wanted = names.index(self.abnormal)
        for index in range(len(found)):
            for classes, pictures in found.class_pictures(index, size_hw):
                for at in (classes == wanted).nonzero()[:, 0].tolist():
                    yield pictures[at], None


def top_mean(values: Float[np.ndarray, "..."] | Tensor, share: float = TOP_SHARE) -> float:
    """Mean of the greatest `share` of the values, of at least one (the tail value at risk).

    Source: Damm et al., "AnomalyDINO", WACV 2025.
    Deviations: there, fewer than 100 values have no mean.
    """
    flat = torch.as_tensor(values).flatten()
    return float(flat.topk(max(int(len(flat) * share), 1)).values.mean())
