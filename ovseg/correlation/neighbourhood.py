"""Affinities that prefer neighbours: a Gaussian of the distance on the grid, added to the logits."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.errors import ConfigError
from ovseg.structures import Affinity, OpenBlock, PatchFeatures, SoftmaxTerm


def gaussian_bias(
    hw: tuple[int, int], num_prefix: int, std_cells: float, *, device: torch.device | str = "cpu"
) -> Float[Tensor, "N N"]:
    """`exp(-distance^2 / (2 std^2))` between cells, at most 1; rows and columns of prefix tokens are 0."""
    ys, xs = torch.meshgrid(
        torch.arange(hw[0], device=device), torch.arange(hw[1], device=device), indexing="ij"
    )
    cells = torch.stack([ys, xs], dim=-1).flatten(0, 1).float()
    squared = (cells[:, None] - cells[None]).square().sum(-1)
    gaussian = torch.exp(-squared / (2 * std_cells**2))
    return torch.nn.functional.pad(gaussian, (num_prefix, 0, num_prefix, 0))


class NeighbourhoodCorrelation(nn.Module):
    """NACLIP's neighbourhood-aware attention: `softmax(k k^T / sqrt(d) + G)`; rows sum to 1.

    Source: arXiv 2404.08181, section 3.2; github.com/sinahmr/NACLIP at 0cac3a65.

    Args:
        std_cells: standard deviation of the Gaussian, in patches (sigma in the paper).
        similarity: "k" as published; "none" uses the Gaussian alone, scaled by the mean product of query
            and key lengths of the image (the code's ablation `nonly`).
    """

    def __init__(self, std_cells: float = 5.0, similarity: Literal["k", "none"] = "k") -> None:
        super().__init__()
        if std_cells <= 0:
            raise ConfigError(f"std_cells must be above 0 (a width in patches), got {std_cells}")
        if similarity not in ("k", "none"):
            raise ConfigError(f"similarity must be 'k' or 'none', got {similarity!r}")
        self.std_cells = std_cells
        self.similarity = similarity

    def forward(self, block: OpenBlock, guide: PatchFeatures | None = None) -> Affinity:
        """Prefix tokens take part, without a bias."""
        bias = gaussian_bias(block.hw, block.num_prefix, self.std_cells, device=block.k.device)
        if self.similarity == "k":
            return Affinity(block.hw, block.num_prefix, terms=(SoftmaxTerm(block.k, block.k, bias),))
        q_length, k_length = block.q.float().norm(dim=-1), block.k.float().norm(dim=-1)
        # The mean over all pairs of tokens is the product of two means, head by head.
        scale = (q_length.mean(-1) * k_length.mean(-1)).mean(-1) * block.q.shape[-1] ** -0.5
        matrix = (bias * scale[:, None, None, None]).softmax(dim=-1)
        return Affinity(block.hw, block.num_prefix, matrix=matrix)
