"""Affinities from a block's own projections: `sum over X of softmax(X X^T / sqrt(d))`, X in {q, k, v}."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from ovseg.errors import ConfigError
from ovseg.structures import Affinity, OpenBlock, PatchFeatures, SoftmaxTerm

Part = Literal["q", "k", "v"]


class QueryKeyCorrelation(nn.Module):
    """The attention that the block was trained with, `softmax(q k^T / sqrt(d))`; rows sum to 1."""

    def forward(self, block: OpenBlock, guide: PatchFeatures | None = None) -> Affinity:
        """Prefix tokens take part, as in training."""
        return Affinity(block.hw, block.num_prefix, terms=(SoftmaxTerm(block.q, block.k),))


class IdentityCorrelation(nn.Module):
    """Every token keeps its own value (MaskCLIP, arXiv 2112.01071, section 3.2)."""

    def forward(self, block: OpenBlock, guide: PatchFeatures | None = None) -> None:
        """No matrix is built."""
        return


class SelfCorrelation(nn.Module):
    """Each chosen projection attends to itself; the matrices are added.

    One part gives ClearCLIP's q-q (arXiv 2407.12442); q and k give SCLIP's correlative self-attention
    (arXiv 2312.01597, equation 4), whose rows sum to 2: the number of parts.

    Args:
        parts: which projections, each at most once.
    """

    def __init__(self, parts: Sequence[Part] = ("q", "k")) -> None:
        super().__init__()
        if not parts or len(set(parts)) != len(parts) or not set(parts) <= set("qkv"):
            raise ConfigError(f"parts must name some of 'q', 'k', 'v', each at most once, got {parts!r}")
        self.parts = tuple(parts)

    def forward(self, block: OpenBlock, guide: PatchFeatures | None = None) -> Affinity:
        """Prefix tokens take part."""
        chosen = [getattr(block, part) for part in self.parts]
        return Affinity(block.hw, block.num_prefix, terms=tuple(SoftmaxTerm(x, x) for x in chosen))
