"""How an image is cut for a fixed-size encoder, and how the pieces become one picture again.

Only arithmetic on sizes and boxes. All windows of an image have the same size, so they make one batch;
their patch grids are laid side by side in a mosaic, and `Windows.resampling` is the pair of matrices that
turns the mosaic into the picture (see `resampling.Resampling`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ovseg.errors import ConfigError, ShapeError
from ovseg.resampling import Resampling, bilinear_matrix

LONG_SIDE = 2048


def resized_hw(image_hw: tuple[int, int], short_side: int, long_side: int = LONG_SIDE) -> tuple[int, int]:
    """The size after a keep-ratio resize: short side `short_side` unless the long side would exceed its own.

    mmcv's `Resize(scale=(long_side, short_side), keep_ratio=True)`; at least 1 pixel a side.
    """
    height, width = image_hw
    factor = min(long_side / max(height, width), short_side / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def resize_image(image: UInt8[np.ndarray, "H W 3"], size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """OpenCV's bilinear resize on bytes, as every published evaluation does it (no antialias)."""
    if image.shape[:2] == size_hw:
        return image
    return cv2.resize(image, size_hw[::-1], interpolation=cv2.INTER_LINEAR)


@dataclass(frozen=True)
class WindowPlan:
    """What to do with an image that is not of the encoder's size.

    Attributes:
        crop: side of a window in pixels; None takes the whole image as one window.
        stride: step between windows.
        fit: how a window whose side is no multiple of `multiple` becomes one. "floor" drops the remainder
            at right and bottom and stretches the map over it (a strided convolution does the same; SCLIP,
            NACLIP); "pad" adds a centred border and crops it off the map (ClearCLIP, ProxyCLIP);
            "pad_end" adds it at right and bottom and stretches the map (CLIP-DINOiser).
        multiple: what sides must be divisible by; None means the encoder's patch.
        pad_with: "mean" (zero after normalisation) or "black" (zero before it).
        via_input: upsample to the resized image first and to the original size after that, also when the
            whole image is one window (windows always do). Off, a whole image goes straight to its size.
        max_batch: windows encoded at once.
    """

    crop: int | None = None
    stride: int | None = None
    fit: Literal["floor", "pad", "pad_end"] = "floor"
    multiple: int | None = None
    pad_with: Literal["mean", "black"] = "mean"
    via_input: bool = False
    max_batch: int = 32

    def __post_init__(self) -> None:
        if self.crop is not None:
            if self.crop < 1:
                raise ConfigError(
                    f"crop must be at least 1 pixel or None for the whole image, got {self.crop}"
                )
            if self.stride is None or not 1 <= self.stride <= self.crop:
                raise ConfigError(
                    f"stride must be between 1 and the crop ({self.crop}), so that windows leave no gap, "
                    f"got {self.stride}"
                )
        if self.fit not in ("floor", "pad", "pad_end"):
            raise ConfigError(f"fit must be 'floor', 'pad' or 'pad_end', got '{self.fit}'")
        if self.pad_with not in ("mean", "black"):
            raise ConfigError(f"pad_with must be 'mean' or 'black', got '{self.pad_with}'")
        if self.max_batch < 1:
            raise ConfigError(f"max_batch must be at least 1, got {self.max_batch}")

    def windows(self, image_hw: tuple[int, int], patch_hw: tuple[int, int]) -> Windows:
        """The windows of an image of this size; one thinner than a patch is padded to a patch."""
        multiple_hw = (self.multiple, self.multiple) if self.multiple else patch_hw
        axes = [
            _Axis.cut(length, self.crop, self.stride, multiple, patch, self.fit)
            for length, multiple, patch in zip(image_hw, multiple_hw, patch_hw, strict=True)
        ]
        return Windows(axes[0], axes[1], self)


def spans(length: int, crop: int | None, stride: int | None) -> list[tuple[int, int]]:
    """Windows along one axis: `(start, end)`; the last one is shifted back so as to end at the border.

    mmseg's `slide_inference`: all have length `min(crop, length)`.
    """
    if crop is None or stride is None or crop >= length:
        return [(0, length)]
    count = (length - crop + stride - 1) // stride + 1
    ends = [min(index * stride + crop, length) for index in range(count)]
    return [(end - crop, end) for end in ends]


@dataclass(frozen=True)
class _Axis:
    """Windows along one axis: their spans, and how each is fitted to the encoder."""

    spans: tuple[tuple[int, int], ...]
    before: int
    after: int
    fit: str

    @classmethod
    def cut(
        cls, length: int, crop: int | None, stride: int | None, multiple: int, patch: int, fit: str
    ) -> _Axis:
        cuts = tuple(spans(length, crop, stride))
        side = cuts[0][1] - cuts[0][0]
        if fit == "floor":
            # An image thinner than a patch has no whole patch to keep: pad it, else nothing is left.
            return cls(cuts, 0, max(patch - side, 0), fit)
        # A multiple that the patch does not divide (ProxyCLIP: 56 and 16) leaves a remainder; drop it.
        padded = -(-side // multiple) * multiple
        missing = padded - side
        before = missing // 2 if fit == "pad" else 0
        return cls(cuts, before, missing - before, fit)

    @property
    def side(self) -> int:
        return self.spans[0][1] - self.spans[0][0]

    def matrix(self, length: int, cells: int) -> Float[Tensor, "length mosaic"]:
        """From the cells of all windows, side by side, to pixels; overlaps averaged."""
        if self.fit == "pad":
            padded = self.before + self.side + self.after
            window = bilinear_matrix(cells, padded)[self.before : self.before + self.side]
        else:
            window = bilinear_matrix(cells, self.side)
        mosaic = torch.zeros(length, len(self.spans) * cells)
        visits = torch.zeros(length, 1)
        for index, (start, end) in enumerate(self.spans):
            mosaic[start:end, index * cells : (index + 1) * cells] = window
            visits[start:end] += 1
        return mosaic / visits


@dataclass(frozen=True)
class Windows:
    """The windows of one image size: cut pixels, join grids. Made by `WindowPlan.windows`."""

    rows: _Axis
    cols: _Axis
    plan: WindowPlan

    @property
    def grid_hw(self) -> tuple[int, int]:
        """How many windows down and across."""
        return len(self.rows.spans), len(self.cols.spans)

    @property
    def boxes_yxyx(self) -> list[tuple[int, int, int, int]]:
        """`(top, left, bottom, right)` of every window, row by row."""
        return [(t, le, b, r) for t, b in self.rows.spans for le, r in self.cols.spans]

    def cut(
        self, image: Float[Tensor, "B 3 H W"], mean_rgb: Float[Tensor, "3 1 1"]
    ) -> Float[Tensor, "windows 3 y x"]:
        """The pixels of all windows, images outermost, fitted to the encoder. Values stay in [0, 1]."""
        pieces = torch.stack([image[..., t:b, le:r] for t, le, b, r in self.boxes_yxyx], dim=1).flatten(0, 1)
        pad = (self.cols.before, self.cols.after, self.rows.before, self.rows.after)
        if not any(pad):
            return pieces
        if self.plan.pad_with == "black":
            return F.pad(pieces, pad)
        return F.pad(pieces - mean_rgb, pad) + mean_rgb

    def cut_regions(self, regions: Int[Tensor, "B H W"], padding: int) -> Int[Tensor, "windows y x"]:
        """Region ids of all windows, cut like the pixels; a border that was added has the id `padding`."""
        pieces = torch.stack([regions[:, t:b, le:r] for t, le, b, r in self.boxes_yxyx], dim=1).flatten(0, 1)
        return F.pad(
            pieces, (self.cols.before, self.cols.after, self.rows.before, self.rows.after), value=padding
        )

    def join(self, grids: Float[Tensor, "windows D h w"]) -> Float[Tensor, "B D mosaic_h mosaic_w"]:
        """The grids of all windows side by side, one mosaic per image."""
        down, across = self.grid_hw
        _, channels, h, w = grids.shape
        mosaic = grids.reshape(-1, down, across, channels, h, w).permute(0, 3, 1, 4, 2, 5)
        return mosaic.reshape(-1, channels, down * h, across * w)

    def resampling(
        self, image_hw: tuple[int, int], cells_hw: tuple[int, int], output_hw: tuple[int, int]
    ) -> Resampling:
        """From a mosaic with `cells_hw` per window to a picture of `output_hw`."""
        whole = self.grid_hw == (1, 1) and self.plan.crop is None
        if whole and not self.plan.via_input and self.rows.fit != "pad":
            return Resampling.bilinear(cells_hw, output_hw)
        rows, cols = self.rows.matrix(image_hw[0], cells_hw[0]), self.cols.matrix(image_hw[1], cells_hw[1])
        return Resampling(rows, cols).then(output_hw)


def whole_patches(image: Float[Tensor, "B 3 H W"], patch_hw: tuple[int, int]) -> Float[Tensor, "B 3 h w"]:
    """The image without the remainder at right and bottom that fills no patch, as a strided convolution."""
    height, width = (side // patch * patch for side, patch in zip(image.shape[-2:], patch_hw, strict=True))
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # a slice asks whether it is the whole image
        rows, cols = (torch.arange(side, device=image.device) for side in (height, width))
        return image.index_select(-2, rows).index_select(-1, cols)
    return image[..., :height, :width]


def check_divisible(image_hw: tuple[int, int], patch_hw: tuple[int, int]) -> None:
    """Raises ShapeError, which states the fix, unless the image holds a whole number of patches."""
    if any(side % patch or not side for side, patch in zip(image_hw, patch_hw, strict=True)):
        fits = tuple(max(side // patch, 1) * patch for side, patch in zip(image_hw, patch_hw, strict=True))
        raise ShapeError(
            f"image is {image_hw[0]}x{image_hw[1]} (HxW), patch size {patch_hw[0]}x{patch_hw[1]}: resize it "
            f"to {fits[0]}x{fits[1]}, or let a WindowPlan cut or pad it"
        )
