"""Position embeddings of a trained square grid, resampled to any other grid.

The parameter is only read. Published code disagrees on how, and results move by about 1e-2, so the way is
part of a method's settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovseg.encoders.traced_positions import resample_traced

#: offset: bicubic by scale factor (h + 0.1) / grid, from DINO's hub code (SCLIP family, Trident, DINO).
#: size: bicubic to the exact size (CLIP-DINOiser, timm without antialias).
#: antialias: the same, low-passed where it shrinks (DINOv2 with registers, timm's `dynamic_img_size`).
#: bilinear: linear to the exact size (CLIP Surgery, ExCEL).
PositionMode = Literal["offset", "size", "antialias", "bilinear"]


@dataclass(frozen=True)
class PositionRule:
    """How a method resamples position embeddings.

    Attributes:
        mode: see `PositionMode`.
        as_published: leave the embedding alone whenever the *number* of cells agrees, also when the grid
            has another shape (7x28 for 14x14), as the published code does. Default: only for the same grid.
    """

    mode: PositionMode = "offset"
    as_published: bool = False


def resample_positions(
    embedding: Float[Tensor, "N C"],
    trained_hw: tuple[int, int],
    hw: tuple[int, int],
    rule: PositionRule,
    *,
    num_prefix: int = 1,
) -> Float[Tensor, "M C"]:
    """The embedding for a grid of `hw`, prefix rows unchanged.

    Args:
        embedding: prefix rows, then one row per cell of the trained grid, row-major.
        trained_hw: the trained grid.
        hw: the wanted grid.
        rule: how.
        num_prefix: rows that belong to class and register tokens.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        prefix, cells = embedding[:num_prefix], embedding[num_prefix:]
        grid = cells.float().T.unflatten(1, trained_hw)
        return torch.cat([prefix, resample_traced(grid, hw, rule.mode).flatten(1).T.to(prefix.dtype)])
    same_count = hw[0] * hw[1] == trained_hw[0] * trained_hw[1]
    if hw == trained_hw or (rule.as_published and same_count):
        return embedding
    prefix, cells = embedding[:num_prefix], embedding[num_prefix:]
    grid = cells.reshape(1, *trained_hw, -1).permute(0, 3, 1, 2).float()
    if rule.mode == "offset":
        factors = [(new + 0.1) / old for new, old in zip(hw, trained_hw, strict=True)]
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", align_corners=False)
    else:
        mode = "bilinear" if rule.mode == "bilinear" else "bicubic"
        antialias = rule.mode == "antialias"
        grid = F.interpolate(grid, size=hw, mode=mode, align_corners=False, antialias=antialias)
    return torch.cat([prefix, grid[0].flatten(1).T.to(prefix.dtype)])
