"""Saying "none of these" of a whole image, by its class token."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from ovseg.heads.rejection import Rejection
from ovseg.results import void_label
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures


class ImageRejection(nn.Module):
    """A step of `Scorer.refine` after which an image that shows none of the classes is void everywhere.

    What is background stays background.

    Args:
        rejection: the rule and its threshold.
    """

    def __init__(self, rejection: Rejection) -> None:
        super().__init__()
        self.rejection = rejection

    def forward(self, score_map: ScoreMap, features: DenseFeatures) -> ScoreMap:
        """The score map with one more revision for each image.

        Raises:
            ConfigError: the image tower has no class token.
        """
        evidence = self.rejection.image_evidence(features, score_map.bank, score_map.temperature)
        known = evidence.accepted(self.rejection.rule, self.rejection.threshold).tolist()
        return score_map.revised([partial(_void, known=each) for each in known])


def _void(score_map: ScoreMap, labels: Tensor, confidence: Tensor, *, known: bool) -> tuple[Tensor, Tensor]:
    if known:
        return labels, confidence
    nothing = labels.new_tensor(
        [k not in score_map.bank.background for k in range(len(score_map.bank.names))]
    )
    void = void_label(len(score_map.bank.names))
    shown = labels != void
    nothing = nothing.bool()[labels.where(shown, 0)] & shown
    return labels.masked_fill(nothing, void), confidence
