"""What CLIPN's "no" text tower is trained with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class ClipnLoss:
    """The parts of the loss, and their sum.

    Attributes:
        matched: a caption says yes to its own image.
        unmatched: a caption's "no" says no to every other image.
        opposite: a caption and its "no" point apart.
        total: half the sum.
    """

    matched: Float[Tensor, ""]
    unmatched: Float[Tensor, ""]
    opposite: Float[Tensor, ""]

    @property
    def total(self) -> Float[Tensor, ""]:
        """Half the sum, as published."""
        return (self.matched + self.unmatched + self.opposite) / 2


def clipn_loss(
    image: Float[Tensor, "N D"], yes: Float[Tensor, "N D"], no: Float[Tensor, "N D"], logit_scale: float
) -> ClipnLoss:
    """Losses of a batch of image-caption pairs.

    Source: Wang et al., "CLIPN for Zero-Shot OOD Detection: Teaching CLIP to Say No", ICCV 2023;
    xmed-lab/CLIPN at e465074b5f.

    Args:
        image: unit rows.
        yes, no: captions by the ordinary and by the "no" tower, unit rows.
        logit_scale: logits are this times the cosine, at most 100.
    """
    margin = logit_scale * (image @ yes.T - image @ no.T)  # of yes over no, image by caption
    own = torch.eye(len(image), dtype=torch.bool, device=image.device)
    apart = 2 - (2 - 2 * (yes * no).sum(dim=1) + 1e-4).sqrt()
    others = margin[~own]
    return ClipnLoss(
        matched=-F.logsigmoid(margin[own]).mean(),
        unmatched=-F.logsigmoid(-others).mean() if len(others) else margin.new_zeros(()),
        opposite=apart.mean(),
    )
