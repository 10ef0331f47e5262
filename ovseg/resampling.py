"""From a grid of cells to a picture, as two matrices.

Axis letters as in `ovseg.structures`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovseg.errors import ShapeError

#: Pixels times maps held at once, by device: on a CPU a piece stays in the cache.
TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}


def tile_elements(device: torch.device) -> int:
    """`TILE_ELEMENTS` of a device."""
    return TILE_ELEMENTS.get(device.type, TILE_ELEMENTS["cpu"])


@dataclass(frozen=True)
class Resampling:
    """How a grid of cells becomes a picture: `rows @ grid @ cols.T`.

    Bilinear upsampling, cropping a padded border, averaging overlapping windows and a second resize are
    all linear and act on rows and columns separately, so any chain of them is this pair of matrices.
    Cells of several windows lie side by side in one grid (a mosaic), and the full-size picture of all
    classes is never built: any band of it is a small product.

    Attributes:
        rows: `(H, h)`.
        cols: `(W, w)`.
    """

    rows: Float[Tensor, "H h"]
    cols: Float[Tensor, "W w"]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Pixels `(H, W)` of the picture."""
        return self.rows.shape[0], self.cols.shape[0]

    @classmethod
    def bilinear(cls, grid_hw: tuple[int, int], size_hw: tuple[int, int]) -> Resampling:
        """Plain bilinear upsampling of a grid, `align_corners=False`, no antialias."""
        return cls(bilinear_matrix(grid_hw[0], size_hw[0]), bilinear_matrix(grid_hw[1], size_hw[1]))

    def then(self, size_hw: tuple[int, int]) -> Resampling:
        """The same picture, resized bilinearly once more. Nothing happens where the size is the same."""
        if size_hw == self.size_hw:
            return self
        return Resampling(
            bilinear_matrix(self.rows.shape[0], size_hw[0]).to(self.rows) @ self.rows,
            bilinear_matrix(self.cols.shape[0], size_hw[1]).to(self.cols) @ self.cols,
        )

    def to(self, device: torch.device | str) -> Resampling:
        """A copy on another device."""
        return Resampling(self.rows.to(device), self.cols.to(device))

    def apply(self, grid: Float[Tensor, "*lead h w"]) -> Float[Tensor, "*lead H W"]:
        """The whole picture. Costs leading axes times H times W; see `tiles` for the frugal way."""
        return self.rows.to(grid.dtype) @ grid @ self.cols.to(grid.dtype).T

    def tiles(
        self, grid: Float[Tensor, "Q h w"], max_elements: int | None = None
    ) -> Iterator[tuple[slice, slice, Float[Tensor, "Q y x"]]]:
        """The picture piece by piece: `(rows, columns, values)`, each of about `max_elements` at most."""
        height, width = self.size_hw
        limit = max_elements or tile_elements(grid.device)
        per_tile = max(limit // grid.shape[0], 1)
        tile_w = min(width, math.isqrt(per_tile))
        tile_h = max(1, min(height, per_tile // tile_w))
        by_row = grid.transpose(0, 1).contiguous()  # (h, Q, w): then both products are plain matrix products
        for left in range(0, width, tile_w):
            xs = slice(left, min(left + tile_w, width))
            cols, used_w = _used(self.cols[xs])
            for top in range(0, height, tile_h):
                ys = slice(top, min(top + tile_h, height))
                rows, used_h = _used(self.rows[ys])
                wide = by_row[used_h, :, used_w] @ cols.to(grid.dtype).T
                piece = rows.to(grid.dtype) @ wide.flatten(1)
                yield ys, xs, piece.unflatten(1, wide.shape[1:]).transpose(0, 1)


def _used(matrix: Tensor) -> tuple[Tensor, slice]:
    """The matrix without the leading and trailing columns that are all zero."""
    columns = matrix.any(dim=0).nonzero()
    used = slice(int(columns[0]), int(columns[-1]) + 1)
    return matrix[:, used], used


def bilinear_matrix(cells: int, pixels: int) -> Float[Tensor, "pixels cells"]:
    """The matrix of a one-dimensional bilinear resize, torch's `interpolate(align_corners=False)`."""
    if cells < 1 or pixels < 1:
        raise ShapeError(f"cannot resize {cells} cells to {pixels} pixels: both must be at least 1")
    basis = torch.eye(cells)[None]
    return F.interpolate(basis, size=pixels, mode="linear", align_corners=False)[0].T.contiguous()
