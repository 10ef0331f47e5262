"""Windows and resizing in numpy: the arithmetic of `ovseg.windows` and `ovseg.resampling`, without torch.

Axis letters as in `ovseg.structures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

LONG_SIDE = 2048


def resized_hw(image_hw: tuple[int, int], short_side: int) -> tuple[int, int]:
    """See `ovseg.windows.resized_hw`."""
    factor = min(LONG_SIDE / max(image_hw), short_side / min(image_hw))
    height, width = (max(int(side * factor + 0.5), 1) for side in image_hw)
    return height, width


def _taps(cells: int, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pixel of a bilinear resize: the cell before it, the one after it, the latter's weight."""
    places = np.maximum((np.arange(pixels, dtype=np.float32) + 0.5) * np.float32(cells / pixels) - 0.5, 0)
    before = np.minimum(places.astype(np.int64), cells - 1)
    return before, np.minimum(before + 1, cells - 1), (places - before).astype(np.float32)


def bilinear_matrix(cells: int, pixels: int) -> Float[np.ndarray, "pixels cells"]:
    """See `ovseg.resampling.bilinear_matrix`."""
    before, after, weight = _taps(cells, pixels)
    matrix = np.zeros((pixels, cells), np.float32)
    rows = np.arange(pixels)
    matrix[rows, before] += 1 - weight
    matrix[rows, after] += weight
    return matrix


def resize_image(image: UInt8[np.ndarray, "H W 3"], size_hw: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Bilinear, not antialiased, in the fixed-point numbers that OpenCV calculates bytes with.

    Weights are multiples of 1/2048; the sum over rows drops bits before it is rounded (`VResizeLinear` in
    OpenCV's modules/imgproc/src/resize.cpp).
    """
    if image.shape[:2] == size_hw:
        return image
    top, bottom, down = _taps(image.shape[0], size_hw[0])
    left, right, across = _taps(image.shape[1], size_hw[1])
    pixels = image.astype(np.int32)
    first, second = (np.rint(each * 2048).astype(np.int32)[:, None] for each in (1 - across, across))
    wide = (pixels[:, left] * first + pixels[:, right] * second) >> 4
    upper, lower = (np.rint(each * 2048).astype(np.int32)[:, None, None] for each in (1 - down, down))
    total = ((wide[top] * upper) >> 16) + ((wide[bottom] * lower) >> 16)
    return ((total + 2) >> 2).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Axis:
    """Windows along one axis of an image.

    Attributes:
        length: of the image.
        starts: where each begins.
        side: of every window, before it is padded.
        before, after: what is padded.
        fit: see `ovseg.windows.WindowPlan`.
    """

    length: int
    starts: tuple[int, ...]
    side: int
    before: int
    after: int
    fit: str

    @classmethod
    def cut(cls, length: int, plan: Mapping[str, Any], patch: int) -> Axis:
        """By the fields of a `WindowPlan`."""
        crop, stride = plan["crop"], plan["stride"]
        if crop is None or stride is None or crop >= length:
            starts, side = (0,), length
        else:
            count = -(-(length - crop) // stride) + 1
            starts, side = tuple(min(index * stride, length - crop) for index in range(count)), crop
        if plan["fit"] == "floor":
            return cls(length, starts, side, 0, max(patch - side, 0), "floor")
        missing = -side % (plan["multiple"] or patch)
        before = missing // 2 if plan["fit"] == "pad" else 0
        return cls(length, starts, side, before, missing - before, plan["fit"])

    def matrix(self, cells: int) -> Float[np.ndarray, "length mosaic"]:
        """From the cells of all windows, side by side, to pixels; overlaps averaged."""
        if self.fit == "pad":
            window = bilinear_matrix(cells, self.before + self.side + self.after)
            window = window[self.before : self.before + self.side]
        else:
            window = bilinear_matrix(cells, self.side)
        mosaic = np.zeros((self.length, len(self.starts) * cells), np.float32)
        visits = np.zeros((self.length, 1), np.float32)
        for index, start in enumerate(self.starts):
            mosaic[start : start + self.side, index * cells : (index + 1) * cells] = window
            visits[start : start + self.side] += 1
        return mosaic / visits


@dataclass(frozen=True)
class Mosaic:
    """The windows of one image.

    Attributes:
        rows, cols: along each axis.
        plan: the fields of a `WindowPlan`.
    """

    rows: Axis
    cols: Axis
    plan: Mapping[str, Any]

    @classmethod
    def of(cls, image_hw: tuple[int, int], plan: Mapping[str, Any], patch_hw: tuple[int, int]) -> Mosaic:
        """For an image of a size."""
        rows, cols = (Axis.cut(side, plan, patch) for side, patch in zip(image_hw, patch_hw, strict=True))
        return cls(rows, cols, plan)

    def cut(
        self, image: Float[np.ndarray, "H W 3"], mean: tuple[float, ...]
    ) -> Float[np.ndarray, "windows 3 y x"]:
        """The pixels of all windows, row by row."""
        rows, cols = self.rows, self.cols
        pieces = np.stack(
            [
                image[top : top + rows.side, left : left + cols.side]
                for top in rows.starts
                for left in cols.starts
            ]
        )
        colour = np.array(mean if self.plan["pad_with"] == "mean" else (0, 0, 0), np.float32)
        pad = ((0, 0), (rows.before, rows.after), (cols.before, cols.after), (0, 0))
        if np.any(pad):
            pieces = np.pad(pieces - colour, pad) + colour
        return np.ascontiguousarray(pieces.transpose(0, 3, 1, 2), dtype=np.float32)

    def join(self, grids: Float[np.ndarray, "windows C h w"]) -> Float[np.ndarray, "C mosaic_h mosaic_w"]:
        """The grids of all windows side by side."""
        down, across = len(self.rows.starts), len(self.cols.starts)
        _, channels, h, w = grids.shape
        mosaic = grids.reshape(down, across, channels, h, w).transpose(2, 0, 3, 1, 4)
        return np.ascontiguousarray(mosaic.reshape(channels, down * h, across * w))

    def resampling(
        self, cells_hw: tuple[int, int], output_hw: tuple[int, int]
    ) -> tuple[Float[np.ndarray, "H mosaic_h"], Float[np.ndarray, "W mosaic_w"]]:
        """The two matrices from a mosaic with `cells_hw` per window to a picture of `output_hw`."""
        axes, whole = (self.rows, self.cols), self.plan["crop"] is None
        if whole and not self.plan["via_input"] and self.rows.fit != "pad":
            rows, cols = (bilinear_matrix(*each) for each in zip(cells_hw, output_hw, strict=True))
            return rows, cols
        rows, cols = (
            bilinear_matrix(axis.length, out) @ axis.matrix(cells)
            if out != axis.length
            else axis.matrix(cells)
            for axis, cells, out in zip(axes, cells_hw, output_hw, strict=True)
        )
        return rows, cols
