"""Tokens that stand out, and how their neighbours replace them (SC-CLIP).

A few patch tokens of CLIP carry no local meaning but draw the attention of all others. They are found by
their local outlier factor and take the mean of the cells around them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ovseg.errors import ConfigError


def local_outlier_factor(tokens: Float[Tensor, "B N C"], neighbours: int = 30) -> Float[Tensor, "B N"]:
    """How much sparser a token's surroundings are than those of its nearest tokens; about 1 for the most.

    With `r_i` the squared distance to the k-th nearest token, the factor is the mean of `r_i / r_j` over the
    k nearest j. It is the outlier factor of Breunig et al. (SIGMOD 2000) with squared distances and with
    every reachability taken as the token's own `r_i`, which is what SC-CLIP's code comes down to.

    Args:
        tokens: of one image each.
        neighbours: k; fewer where there are not so many other tokens.
    """
    count = tokens.shape[1]
    k = min(neighbours, count - 1)
    if k < 1:
        return tokens.new_ones(tokens.shape[:2], dtype=torch.float32)
    tokens = tokens.float()
    # Through a matrix product the distances of near tokens would lose their digits.
    squared = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist").square()
    itself = torch.eye(count, dtype=torch.bool, device=tokens.device)
    near = squared.masked_fill(itself, torch.inf).topk(k, largest=False)
    reach = near.values[..., -1].clamp_min(1e-12)  # tokens that coincide have no distance to divide by
    reach_of_near = reach[:, None].expand(-1, count, -1).gather(2, near.indices)
    return (reach[..., None] / reach_of_near).mean(dim=-1)


def outliers(
    tokens: Float[Tensor, "B N C"], *, neighbours: int = 30, share: float = 0.05
) -> Bool[Tensor, "B N"]:
    """Which tokens have a factor above the quantile `1 - share` of their image.

    Args:
        tokens: of one image each.
        neighbours: see `local_outlier_factor`.
        share: of the tokens, at most; 0 finds none.

    Raises:
        ConfigError: there are no neighbours to compare with, or the share is none.
    """
    if neighbours < 1 or not 0 <= share < 1:
        raise ConfigError(
            f"outliers take neighbours >= 1 and a share in [0, 1), got {neighbours} and {share}"
        )
    factor = local_outlier_factor(tokens, neighbours)
    return factor > factor.quantile(1 - share, dim=1, keepdim=True)


def repair(grid: Float[Tensor, "B C h w"], broken: Bool[Tensor, "B h w"]) -> Float[Tensor, "B C h w"]:
    """Every broken cell becomes the mean of the sound ones among its 8 neighbours, if there are any."""
    sound = (~broken)[:, None].to(grid.dtype)
    total = 9 * F.avg_pool2d(grid * sound, 3, stride=1, padding=1)
    count = 9 * F.avg_pool2d(sound, 3, stride=1, padding=1)
    # The centre of a broken cell is masked, so the sums are those of its neighbours.
    replace = broken[:, None] & (count > 0.5)
    return torch.where(replace, total / count.clamp_min(1), grid)
