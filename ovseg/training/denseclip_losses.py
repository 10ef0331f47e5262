"""DenseCLIP's auxiliary losses: the score map is to say by itself where the classes are.

Source: Rao et al., arXiv 2112.01518, section 3.2; github.com/raoyongming/DenseCLIP at 5eda47f0,
segmentation/denseclip/{denseclip,heads}.py and configs (weight 0.4), detection/denseclip/denseclip.py
(build_seg_target, compute_seg_loss).
Deviations: a batch without any labelled pixel, or without any box, has the loss 0 (published: an average over
nothing). Boxes cover every cell that they touch; published ones are cut to whole cells and never reach the
last row and column, so that boxes below 4 px vanish (`as_published=True`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ovseg.encoders.pyramid import STRIDES

IGNORED = 255


def score_map_loss(
    cosine: Float[Tensor, "B K h w"],
    labels: Int[Tensor, "B H W"],
    *,
    temperature: float = 1 / 0.07,
    weight: float = 0.4,
) -> Float[Tensor, ""]:
    """Cross-entropy of the score map, upsampled, against the classes of pixels.

    Args:
        cosine: the score map.
        labels: the true classes; `IGNORED` counts nowhere.
        temperature: logit scale.
        weight: of the loss.
    """
    logits = F.interpolate(cosine * temperature, labels.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, labels.long(), ignore_index=IGNORED, reduction="sum")
    return weight * total / (labels != IGNORED).sum().clamp(min=1)


def box_targets(
    boxes_xyxy: Sequence[Float[Tensor, "_ 4"]],
    labels: Sequence[Int[Tensor, " _"]],
    *,
    classes: int,
    image_hw: tuple[int, int],
    stride: int = STRIDES[0],
    as_published: bool = False,
) -> tuple[Float[Tensor, "B K h w"], Float[Tensor, "B 1 h w"]]:
    """Boxes as maps: where each class is, and where anything is.

    Args:
        boxes_xyxy: of each image, in pixels of the network's input.
        labels: their classes.
        classes: how many there are.
        image_hw: the network's input.
        stride: pixels of a cell.
        as_published: cut boxes to whole cells, see above.
    """
    height, width = image_hw[0] // stride, image_hw[1] // stride
    target = torch.zeros(len(boxes_xyxy), classes, height, width)
    mask = torch.zeros(len(boxes_xyxy), 1, height, width)
    for index, (boxes, kinds) in enumerate(zip(boxes_xyxy, labels, strict=True)):
        cells = boxes.detach().cpu() / stride
        if as_published:
            limits = torch.tensor([width - 1, height - 1, width - 1, height - 1])
            cells = torch.minimum(cells.long().clamp(min=0), limits)
        else:
            limits = torch.tensor([width, height, width, height])
            cells = torch.cat([cells[:, :2].floor(), cells[:, 2:].ceil()], dim=1).long()
            cells = torch.minimum(cells.clamp(min=0), limits)
        for (left, top, right, bottom), kind in zip(cells.tolist(), kinds.tolist(), strict=True):
            target[index, kind, top:bottom, left:right] = 1
            mask[index, :, top:bottom, left:right] = 1
    return target, mask


def box_score_loss(
    cosine: Float[Tensor, "B K h w"],
    target: Float[Tensor, "B K H W"],
    mask: Float[Tensor, "B 1 H W"],
    *,
    temperature: float = 1 / 0.07,
) -> Float[Tensor, ""]:
    """Binary cross-entropy of the upsampled score map against `box_targets`, inside boxes only.

    Args:
        cosine: the score map.
        target, mask: see `box_targets`.
        temperature: logit scale.
    """
    logits = F.interpolate(cosine * temperature, target.shape[2:], mode="bilinear", align_corners=False)
    target, mask = target.to(logits.device), mask.to(logits.device)
    each = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return (each * mask).sum() / (mask.sum() * target.shape[1]).clamp(min=1)
