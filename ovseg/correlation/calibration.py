"""ExCEL's calibration: a block's q, k and v each attend to themselves, and all heads share the result."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovseg.correlation.pooling import cosine_correlation
from ovseg.correlation.proxy import shifted_softmax

Heads = Float[Tensor, "B G N d"]


def calibrated_attention(
    query: Heads, key: Heads, value: Heads, extra: Float[Tensor, "B M M"] | None = None
) -> Float[Tensor, "B N N"]:
    """`sum over heads of (mean over X of softmax(X X^T / sqrt(d)) + E)`, X in q, k, v; float32.

    Rows sum to the number of heads G, as published, or 2 G in the rows of E.

    Source: Yang et al., CVPR 2025 (ExCEL), static and learnable visual calibration;
    github.com/zwyang6/ExCEL at 2cd7f510.

    Args:
        query, key, value: of the block.
        extra: E, for the last M tokens, which are the patches. See `adapted_attention`.
    """
    batch, heads, count, width = query.shape
    total = torch.zeros(batch, count, count, device=query.device)
    for head in range(heads):  # one head at a time: a matrix for every head is large
        for each in (query[:, head], key[:, head], value[:, head]):
            each = each.float()
            total += (each @ each.mT * width**-0.5).softmax(dim=-1)
    total /= 3
    if extra is not None:
        prefix = count - extra.shape[-1]
        total += F.pad(heads * extra.float(), (prefix, 0, prefix, 0))
    return total


def adapted_attention(features: Float[Tensor, "B C h w"]) -> Float[Tensor, "B M M"]:
    """Which patches belong together to an adapter's features: cosine above the mean, sharpened.

    Args:
        features: of the learned adapter, on the tower's own grid.
    """
    return shifted_softmax(cosine_correlation(features), shift=1.0, sharpness=3.0)
