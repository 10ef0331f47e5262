"""Affinities from plain colour: the control that a learned guide has to beat."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.errors import ConfigError
from ovseg.structures import Affinity, OpenBlock, PatchFeatures
from ovseg.windows import check_divisible


class ColourGuide(nn.Module):
    """A guide without parameters: what a cell's pixels look like, by mean and spread of their colours.

    Args:
        cell_px: side of a cell in pixels.
        space: "rgb", values in [0, 1]; or "oklab", where distance is close to perceived difference
            (Ottosson 2020, bottosson.github.io/posts/oklab), lightness in [0, 1].
        texture: weight of the standard deviations beside the means; 0 leaves them out.
    """

    to_cones: Tensor
    to_lab: Tensor

    def __init__(
        self, cell_px: int = 8, *, space: Literal["rgb", "oklab"] = "rgb", texture: float = 0.0
    ) -> None:
        super().__init__()
        if cell_px < 1:
            raise ConfigError(f"cell_px must be at least 1, got {cell_px}")
        if space not in ("rgb", "oklab"):
            raise ConfigError(f"space must be 'rgb' or 'oklab', got '{space}'")
        if texture < 0:
            raise ConfigError(f"texture must not be negative, got {texture}")
        self.cell_px = cell_px
        self.space = space
        self.texture = texture
        cones = [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]]
        lab = [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]
        self.register_buffer("to_cones", torch.tensor(cones), persistent=False)
        self.register_buffer("to_lab", torch.tensor(lab), persistent=False)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Pixels of a cell."""
        return self.cell_px, self.cell_px

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> PatchFeatures:
        """Three or six channels per cell, no prefix tokens.

        Args:
            image: RGB in [0, 1]; H and W multiples of the cell.

        Raises:
            ShapeError: they are not.
        """
        check_divisible((image.shape[-2], image.shape[-1]), self.patch_hw)
        colours = self._oklab(image) if self.space == "oklab" else image
        grid = F.avg_pool2d(colours, self.cell_px)
        if self.texture:
            variance = F.avg_pool2d(colours.square(), self.cell_px) - grid.square()
            grid = torch.cat([grid, self.texture * variance.clamp(min=0).sqrt()], dim=1)
        prefix = grid.new_zeros(grid.shape[0], 0, grid.shape[1])
        return PatchFeatures(grid, prefix, (image.shape[-2], image.shape[-1]))

    def _oklab(self, image: Tensor) -> Tensor:
        linear = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
        cones = torch.einsum("ij,bjyx->biyx", self.to_cones, linear).clamp(min=0) ** (1 / 3)
        return torch.einsum("ij,bjyx->biyx", self.to_lab, cones)


class ColourCorrelation(nn.Module):
    """`softmax(-|c_i - c_j|^2 / (2 s^2) - |p_i - p_j|^2 / (2 r^2))` of colours c and places p; rows sum to 1.

    The weights of a bilateral filter (Tomasi and Manduchi, ICCV 1998) on the guide's grid, without the class
    token. No published method: a control.

    Args:
        std_colour: s, in the units of the guide's features.
        std_px: r, in pixels of the encoder's input; None: no matter how far.
    """

    def __init__(self, std_colour: float, std_px: float | None = None) -> None:
        super().__init__()
        if std_colour <= 0 or (std_px is not None and std_px <= 0):
            raise ConfigError(f"std_colour and std_px must be above 0, got {std_colour} and {std_px}")
        self.std_colour = std_colour
        self.std_px = std_px

    def forward(self, block: OpenBlock, guide: PatchFeatures | None = None) -> Affinity:
        """One matrix for all heads, on the guide's grid.

        Raises:
            ConfigError: there is no guide.
        """
        if guide is None:
            raise ConfigError("affinity by colour needs a ColourGuide: give the scorer one as its guide")
        hw = (guide.grid.shape[-2], guide.grid.shape[-1])
        what = guide.grid.float() / self.std_colour
        if self.std_px is not None:
            places = cell_places(hw, guide.image_hw, device=what.device) / self.std_px
            what = torch.cat([what, places.expand(what.shape[0], -1, -1, -1)], dim=1)
        cells = what.flatten(2).mT
        squared = torch.cdist(cells, cells, compute_mode="donot_use_mm_for_euclid_dist").square()
        return Affinity(hw, 0, matrix=(-squared / 2).softmax(dim=-1)[:, None])


def cell_places(
    hw: tuple[int, int], image_hw: tuple[int, int], *, device: torch.device | str = "cpu"
) -> Float[Tensor, "2 h w"]:
    """Where the cells of a grid lie in the image: y and x in pixels."""
    axes = [
        torch.arange(cells, device=device) * side / cells for cells, side in zip(hw, image_hw, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))
