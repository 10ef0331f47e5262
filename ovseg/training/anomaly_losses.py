"""AnomalyCLIP's losses: focal and Dice on maps, cross-entropy on images.

Source: Zhou et al., arXiv 2310.18961, section 3.3 and appendix; github.com/zqhang/AnomalyCLIP at 45ed4dd3,
loss.py and train.py. Deviations: none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def focal_loss(
    probabilities: Float[Tensor, "B K H W"],
    classes: Int[Tensor, "B H W"],
    *,
    gamma: float = 2.0,
    smooth: float = 1e-5,
) -> Float[Tensor, ""]:
    """`-(1 - p)^gamma log p`, mean over pixels.

    Args:
        probabilities: of each class.
        classes: the true one.
        gamma: how little easy pixels count.
        smooth: truth is kept this far from 0 and 1, and p from 0.
    """
    truth = F.one_hot(classes, probabilities.shape[1]).movedim(-1, 1).to(probabilities.dtype)
    truth = truth.clamp(smooth / (probabilities.shape[1] - 1), 1 - smooth)
    p = (truth * probabilities).sum(dim=1) + smooth
    return -((1 - p) ** gamma * p.log()).mean()


def dice_loss(
    probabilities: Float[Tensor, "B H W"], mask: Float[Tensor, "B H W"], *, smooth: float = 1.0
) -> Float[Tensor, ""]:
    """`1 - (2 |p m| + s) / (|p| + |m| + s)` of each image, mean over images."""
    overlap = (probabilities * mask).sum(dim=(1, 2))
    total = probabilities.sum(dim=(1, 2)) + mask.sum(dim=(1, 2))
    return 1 - ((2 * overlap + smooth) / (total + smooth)).mean()


def segmentation_loss(
    maps: Sequence[Float[Tensor, "B 2 H W"]], mask: Float[Tensor, "B H W"]
) -> Float[Tensor, ""]:
    """Sum over maps of focal loss, Dice of the abnormal state and Dice of the normal one.

    Args:
        maps: probabilities of the two states, a map per block, at the mask's size.
        mask: 1 where something is wrong, else 0.
    """
    losses = [
        focal_loss(each, mask.long()) + dice_loss(each[:, 1], mask) + dice_loss(each[:, 0], 1 - mask)
        for each in maps
    ]
    return torch.stack(losses).sum()


def glocal_loss(
    image_logits: Float[Tensor, "B 2"],
    labels: Int[Tensor, " B"],
    maps: Sequence[Float[Tensor, "B 2 H W"]],
    mask: Float[Tensor, "B H W"],
    *,
    map_weight: float = 4.0,
) -> Float[Tensor, ""]:
    """Cross-entropy of the images plus `map_weight` times `segmentation_loss`.

    Args:
        image_logits: cosines of image features with the two states, times the logit scale.
        labels: 1 where the image shows something wrong, else 0.
        maps, mask: see `segmentation_loss`.
        map_weight: 4 as published.
    """
    return F.cross_entropy(image_logits, labels) + map_weight * segmentation_loss(maps, mask)
