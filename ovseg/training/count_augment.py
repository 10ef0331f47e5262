"""Crops of a crowd with their dots, as CLIP-EBC trains on them.

Source: github.com/Yiming-M/CLIP-EBC at b52a5944, datasets/transforms.py and utils/data_utils.py; the defaults
are those of trainer.py.

Deviations: brightness, contrast and saturation change in this order (theirs is drawn). A dot at x is mirrored
to W - x, since dots are places, not pixels (theirs: W - 1 - x).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torchvision.transforms.v2.functional as TF
from jaxtyping import Float
from torch import Tensor

from ovseg.errors import ConfigError

Example = tuple[Float[Tensor, "3 h w"], Float[Tensor, "m 2"]]


@dataclass(frozen=True, kw_only=True)
class CountAugmentation:
    """Random changes of an image with dots.

    Attributes:
        crop_hw: size of what comes out.
        scale: least and most side of what is cut out, in units of `crop_hw`: 2 halves the objects.
        flip, jitter, blur, noise: how often each is done.
        strength: brightness, contrast and saturation change by a factor within `1 - strength, 1 + strength`.
        blur_px: size of the blur's kernel.
        blur_std: least and most standard deviation of the blur, in pixels.
        noise_share: share of values that become white, and as many black.
    """

    crop_hw: tuple[int, int]
    scale: tuple[float, float] = (1.0, 2.0)
    flip: float = 0.5
    jitter: float = 0.2
    blur: float = 0.2
    noise: float = 0.5
    strength: float = 0.1
    blur_px: int = 5
    blur_std: tuple[float, float] = (0.1, 5.0)
    noise_share: float = 1e-3

    def __post_init__(self) -> None:
        if min(self.crop_hw) < 1:
            raise ConfigError(f"crop_hw must be at least 1 pixel a side, got {self.crop_hw}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"scale must be 0 < least <= most, got {self.scale}")
        for name in ("flip", "jitter", "blur", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share between 0 and 1, got {getattr(self, name)}")

    def __call__(
        self,
        image: Float[Tensor, "3 H W"],
        points_xy: Float[Tensor, "n 2"],
        generator: torch.Generator | None = None,
    ) -> Example:
        """A crop of `crop_hw` in [0, 1], and the dots in it.

        Args:
            image: RGB in [0, 1].
            points_xy: in pixels.
            generator: of all chances; None is torch's own.
        """
        draw = _Draws(generator)
        image, points_xy = self._crop(image, points_xy, draw)
        if draw.chance(self.flip):
            image = TF.horizontal_flip(image)
            points_xy = torch.stack([self.crop_hw[1] - points_xy[:, 0], points_xy[:, 1]], dim=1)
        if draw.chance(self.jitter):
            low, high = 1 - self.strength, 1 + self.strength
            image = TF.adjust_brightness(image, draw.uniform(low, high))
            image = TF.adjust_contrast(image, draw.uniform(low, high))
            image = TF.adjust_saturation(image, draw.uniform(low, high))
        if draw.chance(self.blur):
            image = TF.gaussian_blur(image, [self.blur_px] * 2, [draw.uniform(*self.blur_std)])
        if draw.chance(self.noise):
            grain = torch.rand(image.shape, generator=generator)
            image = image.masked_fill(grain < self.noise_share, 1.0)
            image = image.masked_fill(grain > 1 - self.noise_share, 0.0)
        return image, points_xy

    def _crop(self, image: Tensor, points_xy: Tensor, draw: _Draws) -> Example:
        """A part with the wanted shape, enlarged first where the image does not hold it, brought to size."""
        scale = draw.uniform(*self.scale)
        height, width = (int(side * scale) for side in self.crop_hw)
        missing = max(height / image.shape[1], width / image.shape[2])
        if missing > 1:
            larger = [int(side * missing) + 1 for side in image.shape[1:]]
            image, points_xy = resize(image, points_xy, (larger[0], larger[1]))
        top = draw.integer(image.shape[1] - height)
        left = draw.integer(image.shape[2] - width)
        moved = points_xy - points_xy.new_tensor([left, top])
        inside = ((moved >= 0) & (moved < moved.new_tensor([width, height]))).all(dim=1)
        return resize(image[:, top : top + height, left : left + width], moved[inside], self.crop_hw)


def resize(
    image: Float[Tensor, "3 H W"], points_xy: Float[Tensor, "n 2"], size_hw: tuple[int, int]
) -> Example:
    """The image by bicubic interpolation with antialias, in [0, 1], and its dots."""
    height, width = image.shape[1:]
    if (height, width) == tuple(size_hw):
        return image, points_xy
    factors = points_xy.new_tensor([size_hw[1] / width, size_hw[0] / height])
    resized = TF.resize(image, list(size_hw), TF.InterpolationMode.BICUBIC, antialias=True)
    return resized.clamp(0, 1), points_xy * factors


class _Draws:
    """Numbers from one generator."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def chance(self, probability: float) -> bool:
        return self.uniform(0.0, 1.0) < probability

    def integer(self, most: int) -> int:
        """From 0 to `most`, inclusive."""
        return int(torch.randint(most + 1, (), generator=self.generator))
