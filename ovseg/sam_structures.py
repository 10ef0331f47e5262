"""What SAM knows about an image: the nouns that its encoder, correlations and refinement share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Queries times keys of one head held at once, by device: on a CPU a piece stays in the cache.
CHUNK_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}


def input_size(image_hw: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Pixels of an image in SAM's input frame: long side `long_side`, aspect kept, at least 1 pixel."""
    factor = long_side / max(image_hw)
    return max(int(image_hw[0] * factor + 0.5), 1), max(int(image_hw[1] * factor + 0.5), 1)


@dataclass(frozen=True)
class GridAttention:
    """Attention over a whole grid with SAM's relative positions, not yet multiplied out.

    `softmax(q k^T / sqrt(d) + r)`, where query i adds `r = rel_rows[i, y] + rel_cols[i, x]` to the key at
    `(y, x)`. At SAM's size one matrix per head has 4096 x 4096 entries, so only a few rows exist at a time.

    Attributes:
        q, k, v: `(B, G, N, d)`, `N = h * w` cells, row-major.
        rel_rows: `(B, G, N, h)`; None where the model has no relative positions.
        rel_cols: `(B, G, N, w)`; likewise.
        hw: the grid.
    """

    q: Float[Tensor, "B G N d"]
    k: Float[Tensor, "B G N d"]
    v: Float[Tensor, "B G N d"]
    rel_rows: Float[Tensor, "B G N h"] | None
    rel_cols: Float[Tensor, "B G N w"] | None
    hw: tuple[int, int]

    @property
    def rows_at_once(self) -> int:
        """How many queries of one head make a chunk."""
        limit = CHUNK_ELEMENTS.get(self.q.device.type, CHUNK_ELEMENTS["cpu"])
        return max(limit // self.q.shape[2], 1)

    def weights(self, image: int, head: int, queries: slice | Int[Tensor, " n"]) -> Float[Tensor, "n N"]:
        """Attention of some queries to all cells; rows sum to 1. In the dtype of q."""
        query, key = self.q[image, head, queries], self.k[image, head]
        scale = query.shape[-1] ** -0.5
        if self.rel_rows is None or self.rel_cols is None:
            return (query * scale @ key.T).softmax(dim=-1)
        rows, cols = self.rel_rows[image, head, queries], self.rel_cols[image, head, queries]
        bias = (rows[:, :, None] + cols[:, None, :]).flatten(1)
        return torch.addmm(bias, query, key.T, alpha=scale).softmax(dim=-1)

    def mix(self) -> Float[Tensor, "B G N d"]:
        """The attention's output."""
        mixed = torch.empty_like(self.v)
        for image, head in self._heads():
            for start in range(0, self.q.shape[2], self.rows_at_once):
                queries = slice(start, start + self.rows_at_once)
                mixed[image, head, queries] = self.weights(image, head, queries) @ self.v[image, head]
        return mixed

    def _heads(self) -> Iterator[tuple[int, int]]:
        return ((image, head) for image in range(self.q.shape[0]) for head in range(self.q.shape[1]))


@dataclass(frozen=True)
class SamImage:
    """Images of one size, embedded: asked with any prompts, any number of times.

    Attributes:
        embedding: the neck's output `(B, C, g, g)` on the whole padded grid, in the encoder's dtype.
        input_hw: pixels of the image in SAM's input frame, before padding at right and bottom.
        image_hw: pixels of the image as it was given.
        attention: of the last encoder block, on the padded grid, where it was asked for.
    """

    embedding: Float[Tensor, "B C g g"]
    input_hw: tuple[int, int]
    image_hw: tuple[int, int]
    attention: GridAttention | None = None

    def __len__(self) -> int:
        return len(self.embedding)

    def to(self, device: torch.device | str) -> SamImage:
        """On another device, without attention."""
        return SamImage(self.embedding.to(device), self.input_hw, self.image_hw)

    def select(self, index: int) -> SamImage:
        """One image of the batch, without attention."""
        return SamImage(self.embedding[index : index + 1], self.input_hw, self.image_hw)
