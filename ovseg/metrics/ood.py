"""How well a score tells known from unknown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ovseg.curves import Curve


@dataclass(frozen=True)
class OodReport:
    """What was measured; known (in-distribution) is the positive class.

    Attributes:
        auroc: the chance that something known scores higher than something unknown.
        fpr95: share of the unknown that passes where 95 % of the known pass, interpolated on the ROC curve.
    """

    auroc: float
    fpr95: float


def ood_report(known: Float[np.ndarray, " N"], unknown: Float[np.ndarray, " M"]) -> OodReport:
    """AUROC and FPR95.

    Source: xmed-lab/CLIPN at e465074b5f (its protocol: ImageNet-1k known; iNaturalist, SUN, Places, Textures
    unknown).

    Args:
        known: scores, higher means more known.
        unknown: likewise.

    Raises:
        ShapeError: scores are not finite.
    """
    truth = np.repeat([True, False], [len(known), len(unknown)])
    curve = Curve.of(np.concatenate([known, unknown]), truth)
    return OodReport(curve.roc_area, curve.false_alarms_at(0.95))
