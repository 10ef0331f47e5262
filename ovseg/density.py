"""Density maps: objects per cell, so that any part of the picture can be summed.

Resizing an ordinary map keeps its values; resizing a density keeps its sum.
"""

from __future__ import annotations

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


def _shares(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """What share of each old cell falls into each new one; columns sum to 1."""
    # In units of 1 / (old * new) of the length, all borders are integers and nothing is rounded.
    starts, targets = np.arange(old) * new, np.arange(new)[:, None] * old
    overlap = np.minimum(starts + new, targets + old) - np.maximum(starts, targets)
    return overlap.clip(min=0) / new
