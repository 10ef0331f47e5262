"""Masks as COCO's compressed run lengths: `{"size": [H, W], "counts": str}`.

Runs go down the columns, the first is of zeros. From the third on (counted from 0), a run is stored as the
difference to the one two before, in groups of 5 bits, lowest first: bit 6 says that more follow, and the
character is the group plus 48. It is the format of COCO's annotation files, so pycocotools reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import cv2
import numpy as np
from jaxtyping import Bool, Int64

from ovseg.errors import ShapeError


class Rle(TypedDict):
    """A mask; ready for JSON."""

    size: list[int]
    counts: str


def encode_mask(
    mask: Bool[np.ndarray, "h w"], *, at_xy: tuple[int, int] = (0, 0), image_hw: tuple[int, int] | None = None
) -> Rle:
    """A mask, or a piece of one.

    Args:
        mask: where the object is.
        at_xy: the place of the piece's upper left pixel in the image.
        image_hw: the image's size, by default that of `mask`; all around the piece is empty.

    Raises:
        ShapeError: the piece leaves the image.
    """
    (rows, columns), (left, top) = mask.shape, at_xy
    height, width = image_hw or mask.shape
    if min(at_xy) < 0 or top + rows > height or left + columns > width:
        raise ShapeError(
            f"a mask of {rows}x{columns} (HxW) at row {top}, column {left} leaves its image of "
            f"{height}x{width}"
        )
    padded = np.zeros((columns, rows + 1), np.int8)  # a zero below each column ends its last run
    padded[:, :-1] = mask.T
    steps = np.diff(padded.ravel(), prepend=0)
    starts, ends = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)
    starts, ends = ((left + at // (rows + 1)) * height + top + at % (rows + 1) for at in (starts, ends))
    apart = starts[1:] != ends[:-1]  # a run from the foot of one column to the head of the next is one
    starts, ends = starts[np.append(True, apart)[: len(starts)]], ends[np.append(apart, True)[: len(ends)]]
    edges = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(edges, prepend=0, append=height * width)
    return {"size": [height, width], "counts": _pack(counts if counts[-1] else counts[:-1])}


def decode_mask(rle: Rle) -> Bool[np.ndarray, "H W"]:
    """The mask.

    Raises:
        ShapeError: the runs do not fill the mask exactly.
    """
    (height, width), counts = rle["size"], run_lengths(rle)
    ones = np.arange(len(counts)) % 2 == 1
    return np.repeat(ones, counts).reshape(width, height).T


def run_lengths(rle: Rle) -> Int64[np.ndarray, " n"]:
    """Lengths of the runs, zeros and ones by turns.

    Raises:
        ShapeError: they do not add up to the mask's size.
    """
    counts, (height, width) = rle["counts"], rle["size"]
    found = _unpack(counts.encode() if isinstance(counts, str) else bytes(counts))
    if found.sum() != height * width or (found < 0).any():
        raise ShapeError(
            f"a mask's runs add up to {found.sum()} pixels, its size is {height}x{width} (HxW) = "
            f"{height * width}: it is damaged, or not COCO's compressed run-length code"
        )
    return found


def mask_area(rle: Rle) -> int:
    """Pixels of the mask."""
    return int(run_lengths(rle)[1::2].sum())


def from_coco(segmentation: object, image_hw: tuple[int, int]) -> Rle:
    """Any segmentation of a COCO file: run lengths, compressed or listed, or polygons.

    Args:
        segmentation: `{"size", "counts"}`, or polygons `[[x0, y0, x1, y1, ...], ...]` (drawn by OpenCV, so
            borders may differ from COCO's own drawing by a pixel).
        image_hw: the image's size.
    """
    if isinstance(segmentation, dict):
        counts, size = segmentation["counts"], [int(side) for side in segmentation["size"]]
        if isinstance(counts, list):
            return {"size": size, "counts": _pack(np.asarray(counts, np.int64))}
        return {"size": size, "counts": counts if isinstance(counts, str) else bytes(counts).decode()}
    if not isinstance(segmentation, Sequence):
        raise ShapeError(f"a segmentation is run lengths or polygons, got {type(segmentation).__name__}")
    canvas = np.zeros(image_hw, np.uint8)
    # a pixel's middle has whole numbers in OpenCV and ends in .5 in COCO; 4 bits of fraction
    rings = [np.round((np.reshape(ring, (-1, 2)) - 0.5) * 16).astype(np.int32) for ring in segmentation]
    for ring in rings:
        cv2.fillPoly(canvas, [ring], 1, shift=4)
    return encode_mask(canvas > 0)


def _pack(counts: np.ndarray) -> str:
    rest = counts.astype(np.int64)
    rest[3:] -= counts[1:-2]
    columns, active = [], np.ones(len(rest), bool)
    while active.any():
        group, rest = rest & 31, rest >> 5
        more = np.where(group & 16, rest != -1, rest != 0)
        columns.append(np.where(active, group + 32 * more + 48, 0))
        active &= more
    letters = np.stack(columns, axis=1).ravel()
    return letters[letters > 0].astype(np.uint8).tobytes().decode()


def _unpack(text: bytes) -> Int64[np.ndarray, " n"]:
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(codes & 32 == 0)
    first = np.append(0, last[:-1] + 1)
    place = np.arange(len(codes)) - np.repeat(first, last - first + 1)[: len(codes)]
    values = np.add.reduceat((codes & 31) << (5 * place), first) if len(last) else codes[:0]
    negative = codes[last] & 16 > 0
    values = values - (negative.astype(np.int64) << (5 * (last - first + 1)))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
