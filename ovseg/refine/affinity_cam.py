"""Class activation maps spread along a transformer's own attention (seeds of weakly supervised methods)."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor


def transitions(attention: Float[Tensor, "L N N"], rounds: int = 3) -> Float[Tensor, "N N"]:
    """Attention of several layers as one symmetric walk of two steps.

    The mean over layers is normalised by columns and rows in turns (Sinkhorn), made symmetric and squared.

    Args:
        attention: between patches, without prefix tokens.
        rounds: of the normalisation.
    """
    walk = attention.float().mean(dim=0)
    for _ in range(rounds):
        walk = walk / walk.sum(dim=0, keepdim=True).clamp_min(1e-12)
        walk = walk / walk.sum(dim=1, keepdim=True).clamp_min(1e-12)
    walk = (walk + walk.T) / 2
    return walk @ walk


def peak_boxes(
    cam: Float[Tensor, "h w"], threshold: float, *, as_published: bool = False
) -> Bool[Tensor, "h w"]:
    """The boxes around all connected regions that exceed a share of the map's peak.

    Args:
        cam: in [0, 1].
        threshold: share of the peak.
        as_published: boxes never reach the last row and column.
    """
    grey = (cam.cpu().numpy() * 255).astype(np.uint8)
    above = (grey > int(threshold * grey.max())).astype(np.uint8)
    inside = torch.zeros(cam.shape, dtype=torch.bool)
    height, width = (side - 1 if as_published else side for side in cam.shape)
    _, _, boxes, _ = cv2.connectedComponentsWithStats(above, connectivity=8)
    for x, y, w, h, _ in boxes[1:]:  # the first is what lies outside
        inside[y : min(y + h, height), x : min(x + w, width)] = True
    return inside.to(cam.device)


def spread_cams(
    cams: Float[Tensor, "k h w"],
    attention: Float[Tensor, "L N N"],
    *,
    threshold: float = 0.79,
    as_published: bool = False,
) -> Float[Tensor, "k h w"]:
    """Every map spread along the attention, from inside the boxes around its peaks only.

    Source: Lin et al., arXiv 2212.09506 (CLIP-ES), section 3.3, as in github.com/zwyang6/ExCEL at 2cd7f510.

    Args:
        cams: one per class, in [0, 1].
        attention: see `transitions`.
        threshold: see `peak_boxes`.
        as_published: see `peak_boxes`.
    """
    walk = transitions(attention)
    inside = torch.stack([peak_boxes(cam, threshold, as_published=as_published) for cam in cams])
    return ((cams * inside).flatten(1).float() @ walk.T).unflatten(1, cams.shape[-2:])
