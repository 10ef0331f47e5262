"""Position embeddings on a grid whose size is not known yet: for a graph that is being traced.

While a model is exported, the sides of the grid are symbols: they must not be compared or rounded, or the
graph fits one size only. So the resampling is written as two matrices that are computed from them.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

#: The cubic's slope parameter: of torch's bicubic, and of its antialiased one.
SHARP, SOFT = -0.75, -0.5


def cubic(distance: Tensor, slope: float) -> Tensor:
    """Keys' cubic convolution kernel of a distance in cells; 0 from 2 on."""
    d = distance.abs()
    near = ((slope + 2) * d - (slope + 3)) * d * d + 1
    far = ((slope * d - 5 * slope) * d + 8 * slope) * d - 4 * slope
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def resampling_matrix(cells: Any, trained: int, scale: Tensor, mode: str) -> Float[Tensor, "cells trained"]:
    """From a trained axis to another; the identity where `scale` is 1 and the lengths agree.

    Args:
        cells: length of the new axis, a number or a symbol.
        trained: length of the trained one.
        scale: new cells per trained one, one value.
        mode: see `ovseg.encoders.positions.PositionMode`.
    """
    device = scale.device
    centres = (torch.arange(cells, device=device, dtype=torch.float32) + 0.5) / scale - 0.5
    own = torch.arange(trained, device=device, dtype=torch.float32)
    if mode == "antialias":
        weights = cubic((own - centres[:, None]) * scale.clamp(max=1), SOFT)
        return weights / weights.sum(dim=1, keepdim=True)
    if mode == "bilinear":
        centres = centres.clamp(min=0)
        taps = centres.floor()[:, None] + torch.arange(2, device=device)
        weights = 1 - (centres[:, None] - taps).abs()
    else:
        taps = centres.floor()[:, None] + torch.arange(-1, 3, device=device)
        weights = cubic(centres[:, None] - taps, SHARP)
    chosen = taps.clamp(0, trained - 1)[..., None] == own
    return (weights[..., None] * chosen).sum(dim=1)


def resample_traced(grid: Float[Tensor, "C y x"], hw: tuple[Any, Any], mode: str) -> Float[Tensor, "C h w"]:
    """A trained grid on one of `hw` cells, unchanged where that is its own size; as torch's `interpolate`.

    Args:
        grid: of the trained size.
        hw: numbers or symbols.
        mode: see `ovseg.encoders.positions.PositionMode`.
    """
    trained_hw = (grid.shape[-2], grid.shape[-1])
    height, width = (torch.arange(side, side + 1, device=grid.device, dtype=torch.float32) for side in hw)
    same = (height == trained_hw[0]) & (width == trained_hw[1])
    extra = 0.1 if mode == "offset" else 0.0
    rows, cols = (
        resampling_matrix(cells, old, torch.where(same, torch.ones_like(new), (new + extra) / old), mode)
        for cells, old, new in zip(hw, trained_hw, (height, width), strict=True)
    )
    return rows @ grid @ cols.T
