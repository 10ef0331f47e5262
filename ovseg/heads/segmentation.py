"""Score map to a class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ovseg.errors import ConfigError
from ovseg.results import Segmentation, void_label
from ovseg.score_map import ScoreMap

#: Kept scores have a cell for so many pixels a side, half a ViT-B/16 patch.
SCORE_STRIDE = 8


def score_picture(
    score_map: ScoreMap, index: int, size_hw: tuple[int, int] | None = None
) -> Float[np.ndarray, "K h w"]:
    """One image's class probabilities, small: a cell for `SCORE_STRIDE` pixels a side, rounded up."""
    height, width = size_hw or score_map.image_hw
    small_hw = (-(-height // SCORE_STRIDE), -(-width // SCORE_STRIDE))
    picture = np.empty((len(score_map.bank.names), *small_hw), np.float32)
    for ys, xs, piece in score_map.tiles(index, small_hw):
        picture[:, ys, xs] = piece.cpu().numpy()
    return picture


class SegmentationHead(nn.Module):
    """The best class of every pixel, where it is likely enough.

    Args:
        threshold: pixels whose best class has a smaller probability become background, if the vocabulary
            has a background class, else void. A class's own threshold in the vocabulary comes first.
        area_threshold: foreground classes that hold at most this share of an image's foreground pixels are
            dropped and their pixels decided again (SCLIP's area filter). 0 switches it off.
        keep_scores: keep class probabilities with the result, as a picture of `1 / SCORE_STRIDE` of its size.
    """

    def __init__(
        self, *, threshold: float = 0.0, area_threshold: float = 0.0, keep_scores: bool = False
    ) -> None:
        super().__init__()
        for name, value in (("threshold", threshold), ("area_threshold", area_threshold)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is a probability or share between 0 and 1, got {value}")
        self.threshold = threshold
        self.area_threshold = area_threshold
        self.keep_scores = keep_scores

    def forward(
        self,
        score_map: ScoreMap,
        size_hw: tuple[int, int] | None = None,
        *,
        colors: Sequence[tuple[int, int, int] | None] | None = None,
    ) -> list[Segmentation]:
        """One result per image.

        Args:
            score_map: of a batch.
            size_hw: size of the labels, by default where the map leads.
            colors: by class, carried along for pictures.
        """
        bank = score_map.bank
        labels, confidence = score_map.labels(size_hw)
        if self.area_threshold:
            allowed = torch.stack([self._large_enough(each, score_map) for each in labels])
            if not allowed.all():
                labels, confidence = score_map.labels(size_hw, allowed=allowed)
        void = void_label(len(bank.names))
        fallback = min(bank.background) if bank.background else void
        own = bank.thresholds or (None,) * len(bank.names)
        limits = confidence.new_tensor([self.threshold if each is None else each for each in own])
        labels = torch.where(confidence < limits[labels], fallback, labels)
        labels, confidence = self._revised(score_map, labels, confidence)
        dtype = np.uint8 if void == 255 else np.uint16
        return [
            Segmentation(
                labels=labels[index].cpu().numpy().astype(dtype),
                names=bank.names,
                confidence=confidence[index].cpu().numpy(),
                background=bank.background,
                colors=None if colors is None else tuple(colors),
                void=void,
                scores=score_picture(score_map, index, size_hw) if self.keep_scores else None,
            )
            for index in range(len(score_map))
        ]

    @staticmethod
    def _revised(score_map: ScoreMap, labels: Tensor, confidence: Tensor) -> tuple[Tensor, Tensor]:
        for index, chain in enumerate(score_map.revisions):
            one = score_map.select(index)
            for revise in chain:
                labels[index], confidence[index] = revise(one, labels[index], confidence[index])
        return labels, confidence

    def _large_enough(self, labels: Int[Tensor, "H W"], score_map: ScoreMap) -> Bool[Tensor, " K"]:
        counts = torch.bincount(labels.flatten(), minlength=len(score_map.bank.names))
        foreground = torch.tensor([k not in score_map.bank.background for k in range(len(counts))]).to(
            counts.device
        )
        enough = counts > self.area_threshold * counts[foreground].sum()
        return enough | ~foreground
