"""Density maps: objects per cell, so that any part of the picture can be summed.

Resizing an ordinary map keeps its values; resizing a density keeps its sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from ovseg.errors import ShapeError


def resize_density(density: Float[np.ndarray, "h w"], size_hw: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """The same objects on another grid: each old cell is shared out over the new cells that it overlaps.

    The sum stays, and so does that of any part whose border lies on cell borders of both grids.

    Args:
        density: objects per cell.
        size_hw: cells of the new grid.

    Raises:
        ShapeError: the new size has no cell.
    """
    if min(size_hw) < 1:
        raise ShapeError(f"a density map needs at least one cell a side, got {size_hw[0]}x{size_hw[1]} (HxW)")
    if density.shape == tuple(size_hw):
        return density
    rows, cols = (_shares(old, new) for old, new in zip(density.shape, size_hw, strict=True))
    return (rows @ density.astype(np.float64) @ cols.T).astype(density.dtype)


def join_tiles(
    tiles: Sequence[Float[np.ndarray, "_ _"]], corners_yx: Sequence[tuple[int, int]], size_hw: tuple[int, int]
) -> Float[np.ndarray, "H W"]:
    """One density of tiles; where several overlap, their mean.

    Tiles side by side keep the sum; so do overlapping ones that agree where they overlap.

    Args:
        tiles: densities, at least one.
        corners_yx: the top left cell of each.
        size_hw: cells of the whole.

    Raises:
        ShapeError: a tile reaches over the border, a cell is in no tile, or corners are missing.
    """
    if len(tiles) != len(corners_yx):
        raise ShapeError(f"{len(tiles)} tiles came with {len(corners_yx)} corners: give one for each")
    total, visits = np.zeros(size_hw), np.zeros(size_hw)
    for tile, (top, left) in zip(tiles, corners_yx, strict=True):
        bottom, right = top + tile.shape[0], left + tile.shape[1]
        if min(top, left) < 0 or bottom > size_hw[0] or right > size_hw[1]:
            raise ShapeError(
                f"a tile of {tile.shape[0]}x{tile.shape[1]} cells (HxW) at row {top}, column {left} reaches "
                f"over the {size_hw[0]}x{size_hw[1]} cells of the whole"
            )
        total[top:bottom, left:right] += tile
        visits[top:bottom, left:right] += 1
    if not visits.all():
        row, col = np.argwhere(visits == 0)[0]
        raise ShapeError(f"no tile covers row {row}, column {col}: tiles must leave no gap")
    return (total / visits).astype(tiles[0].dtype)


def _shares(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """What share of each old cell falls into each new one; columns sum to 1."""
    # In units of 1 / (old * new) of the length, all borders are integers and nothing is rounded.
    starts, targets = np.arange(old) * new, np.arange(new)[:, None] * old
    overlap = np.minimum(starts + new, targets + old) - np.maximum(starts, targets)
    return overlap.clip(min=0) / new
