"""SAM's attention restricted to similar tokens: what lies in the same segment shares its meaning.

With `a` the attention of SAM's last block and `u` its values, per head h:

    C_h,ij = cos(u_h,i, u_h,j)      theta_i = cosine_factor * mean_h,j C_h,ij, at most 0.9
    W_ij = mean_h a_h,ij [C_h,ij > theta_i], rows normalised

Source: Shi et al., Trident, arXiv 2411.09219, section 3; github.com/YuHengsss/Trident at a93b346d.
Deviations: a row that keeps nothing keeps itself (the code divides zero by zero).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ovseg.sam_structures import GridAttention

#: Similarity above which tokens always count as alike, and what stands in for a negative threshold.
HIGHEST_THRESHOLD, INSTEAD_OF_NEGATIVE = 0.9, 0.6


def cosine_thresholds(
    values: Float[Tensor, "G n d"], cosine_factor: float, *, keep_negative: bool = True
) -> Float[Tensor, " n"]:
    """How similar a token must be to each query; all heads share it.

    Args:
        values: unit vectors.
        cosine_factor: times the query's mean similarity.
        keep_negative: off, 0.6 takes the place of negative thresholds.
    """
    threshold = cosine_factor * (values @ values.mean(dim=1)[..., None])[..., 0].mean(dim=0)
    if not keep_negative:
        threshold = threshold.masked_fill(threshold < 0, INSTEAD_OF_NEGATIVE)
    return threshold.clamp_max(HIGHEST_THRESHOLD)


def segment_rows(
    attention: GridAttention,
    image: int,
    valid_hw: tuple[int, int],
    *,
    cosine_factor: float = 1.2,
    keep_negative: bool = True,
) -> Iterator[tuple[slice, Float[Tensor, "m n"]]]:
    """W, a few rows at a time: `(which rows, weights)`, float32, non-negative, rows sum to 1.

    Args:
        attention: of SAM's last block, on the padded grid.
        image: which of the batch.
        valid_hw: the upper left part of the grid that holds the image; W is about its cells, row-major.
        cosine_factor: see above; 0 drops dissimilar tokens only (VOC20), 3 for Cityscapes.
        keep_negative: see `cosine_thresholds` (refine_neg_cos in the code).
    """
    cells = _valid_cells(attention, valid_hw)
    whole_rows = valid_hw[1] == attention.hw[1]
    keys = slice(0, len(cells)) if whole_rows else cells  # a slice is no copy
    values = F.normalize(attention.v[image][:, keys].float(), dim=-1)
    thresholds = cosine_thresholds(values, cosine_factor, keep_negative=keep_negative)
    heads = range(len(values))
    for start in range(0, len(cells), attention.rows_at_once):
        rows = slice(start, min(start + attention.rows_at_once, len(cells)))
        total = values.new_zeros(rows.stop - start, len(cells))
        for head in heads:
            weights = attention.weights(image, head, cells[rows])[:, keys]
            dissimilar = values[head, rows] @ values[head].T <= thresholds[rows, None]
            total += weights.float().masked_fill_(dissimilar, 0)
        mass = total.sum(dim=-1, keepdim=True)
        itself = torch.arange(start, rows.stop, device=total.device)[:, None]
        total.scatter_add_(1, itself, (mass == 0).float())
        yield rows, total.div_(mass + (mass == 0))


def segment_pooling(
    canvas: Float[Tensor, "B C h w"],
    attention: GridAttention,
    *,
    cosine_factor: float = 1.2,
    keep_negative: bool = True,
) -> Float[Tensor, "B C h w"]:
    """`W @ canvas`, without ever holding W: each cell becomes the average of its segment.

    Args:
        canvas: features of the valid part of the grid.
        attention, cosine_factor, keep_negative: see `segment_rows`.
    """
    valid_hw = (canvas.shape[-2], canvas.shape[-1])
    flat = canvas.float().flatten(2).mT
    pooled = torch.empty_like(flat)
    for image in range(len(canvas)):
        for rows, weights in segment_rows(
            attention, image, valid_hw, cosine_factor=cosine_factor, keep_negative=keep_negative
        ):
            pooled[image, rows] = weights @ flat[image]
    return pooled.mT.unflatten(-1, valid_hw)


def _valid_cells(attention: GridAttention, valid_hw: tuple[int, int]) -> Int[Tensor, " n"]:
    cells = torch.arange(attention.hw[0] * attention.hw[1], device=attention.v.device)
    return cells.unflatten(0, attention.hw)[: valid_hw[0], : valid_hw[1]].flatten()
