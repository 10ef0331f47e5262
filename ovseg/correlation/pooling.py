"""Pooling after the projection: each patch becomes the average of the patches that are like it.

`R_i = sum_j c_ij M_j / (sum_j c_ij + eps)` with small correlations set to zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def cosine_correlation(features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B N N"]:
    """Cosines of all pairs of cells."""
    unit = F.normalize(features.float().flatten(2), dim=1)
    return unit.mT @ unit


def threshold_pooling(
    features: Float[Tensor, "B D h w"], correlation: Float[Tensor, "B N N"], threshold: float
) -> Float[Tensor, "B D h w"]:
    """Features averaged with the correlations that reach `threshold` as weights (CLIP-DINOiser, equation 2).

    Args:
        features: what is averaged.
        correlation: of cell i (rows) with cell j, symmetric or not.
        threshold: smaller correlations count as 0 (gamma in the paper).
    """
    weights = torch.where(correlation < threshold, 0, correlation)
    pooled = features.float().flatten(2) @ weights.mT / (weights.sum(dim=-1)[:, None] + 1e-6)
    return pooled.unflatten(-1, features.shape[-2:]).to(features.dtype)
