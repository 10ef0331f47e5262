"""Losses of the dense score map, for whatever learns the words that it is made of.

CoOp learns a context from the classes of images (arXiv 2109.01134, equation 1). Here the same softmax is
taken in every pixel: the cross-entropy of the map's class logits, resampled to the picture, with the label.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ovseg.errors import ShapeError
from ovseg.resampling import Resampling
from ovseg.score_map import ScoreMap

#: The label of pixels that count for nothing.
VOID = 255


def pixel_logits(score_map: ScoreMap, index: int, stride: int = 1) -> Float[Tensor, "K y x"]:
    """Class logits of every `stride`-th pixel of an image, beginning in the middle of the first stride.

    Args:
        score_map: of a batch.
        index: which image of it.
        stride: in both directions; of the grid of K classes only so much is ever resampled.
    """
    first = stride // 2
    whole = score_map.resampling
    some = Resampling(whole.rows[first::stride], whole.cols[first::stride])
    return some.apply(score_map.per_class(score_map.logits[index]))


def score_map_loss(
    score_map: ScoreMap,
    labels: Int[Tensor, "B H W"],
    *,
    stride: int = 1,
    gamma: float = 0.0,
    void: int = VOID,
) -> Float[Tensor, ""]:
    """Cross-entropy of pixels, mean over all that have a label; 0 where none has.

    Args:
        score_map: of B images.
        labels: classes of the bank, or `void`.
        stride: see `pixel_logits`.
        gamma: of a focal loss, `-(1 - p)^gamma log p`; 0 is plain cross-entropy.
        void: this label counts for nothing.

    Raises:
        ShapeError: the labels are not of the size that the map leads to.
    """
    expected = (len(score_map), *score_map.image_hw)
    if tuple(labels.shape) != expected:
        raise ShapeError(f"labels are {tuple(labels.shape)}, the score map leads to {expected}")
    first = stride // 2
    total, number = score_map.cosine.new_zeros(()), 0
    for index in range(len(score_map)):
        truth = labels[index, first::stride, first::stride].to(score_map.cosine.device).long()
        logits = pixel_logits(score_map, index, stride)[None]
        losses = F.cross_entropy(logits, truth[None], ignore_index=void, reduction="none")
        if gamma:
            losses = losses * (1 - torch.exp(-losses)) ** gamma
        total = total + losses.sum()
        number += int((truth != void).sum())
    return total / max(number, 1)
