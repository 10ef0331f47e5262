"""A raster's labels while they are made, in files: memory holds a strip, and a stopped run goes on."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8

from ovseg.geo import Span, Tile

#: Rows of a strip, and sides of the result's blocks.
BLOCK = 256
#: Pixels of a cell of the probabilities, as heads keep them.
STEP = 8


class Scratch:
    """What is known of a raster while it is worked on, as plain files, and which tiles are done.

    Labels and confidence have a value for each pixel. Class probabilities, which blend where tiles overlap,
    have one for each cell of `STEP` pixels a side: weighted sums, and last the sum of the weights. A tile
    that is written twice, because a process was killed in between, only weighs more.

    Args:
        folder: where to; the files are named after `key`.
        key: all that the results depend on: files of another key are not continued.
        hw: pixels of the raster.
        dtype: of the labels.
        classes: how many.
    """

    def __init__(self, folder: Path, key: str, hw: tuple[int, int], dtype: Any, classes: int) -> None:
        self.path = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.hw, self.dtype = hw, np.dtype(dtype)
        self.cells_hw = -(-hw[0] // STEP), -(-hw[1] // STEP)
        self.channels = classes + 1
        self.done: set[int] = set()

    def __enter__(self) -> Scratch:
        self.path.mkdir(parents=True, exist_ok=True)
        self._tiles = open(self.path / "tiles.txt", "a+b", buffering=0)
        self._tiles.seek(0)
        # A process that was killed may have left a torn line, which lacks its semicolon.
        lines = self._tiles.read().split()
        self.done = {int(line[:-1]) for line in lines if line.endswith(b";")}
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._files = [os.open(self.path / name, flags) for name in ("labels", "confidence", "scores")]
        for file, size in zip(self._files, (self.dtype.itemsize, 1), strict=False):
            os.truncate(file, self.hw[0] * self.hw[1] * size)
        return self

    def __exit__(self, *reason: object) -> None:
        self._tiles.close()
        for file in self._files:
            os.close(file)

    def write(self, number: int, tile: Tile, labels: np.ndarray, confidence: np.ndarray) -> None:
        """The core of a tile, after which it is done."""
        (top, _), (left, _) = tile.core_rows, tile.core_columns
        for file, part in zip(self._files, (labels.astype(self.dtype), confidence), strict=False):
            for row, values in enumerate(np.ascontiguousarray(part), start=top):
                os.lseek(file, (row * self.hw[1] + left) * part.itemsize, os.SEEK_SET)
                os.write(file, values)
        self._tiles.write(b"\n%d;" % number)
        self.done.add(number)

    def add_scores(self, tile: Tile, scores: Float[np.ndarray, "K h w"], overlap: int) -> None:
        """A tile's class probabilities, to be blended with its neighbours'."""
        top, left = tile.rows[0] // STEP, tile.columns[0] // STEP
        down, across = (
            _weights(span, side, overlap)
            for span, side in zip((tile.rows, tile.columns), self.hw, strict=True)
        )
        weights = down[:, None] * across
        added = np.concatenate([scores * weights, weights[None]]).transpose(1, 2, 0)
        if os.fstat(self._files[2]).st_size == 0:
            os.truncate(self._files[2], self.cells_hw[0] * self.cells_hw[1] * self.channels * 2)
        for row, values in enumerate(added, start=top):
            at = (row * self.cells_hw[1] + left) * self.channels
            old = self._read(2, at, values.size, np.dtype(np.float16)).reshape(values.shape)
            os.lseek(self._files[2], at * 2, os.SEEK_SET)
            os.write(self._files[2], (old.astype(np.float32) + values).astype(np.float16).tobytes())

    def blend(self, void: int, limits: Float[np.ndarray, " K"], fallback: int) -> None:
        """Labels and confidence by the blended probabilities, where there are any; void stays void.

        Args:
            void: its label.
            limits: least probability by class.
            fallback: the label of what is less probable.
        """
        if os.fstat(self._files[2]).st_size == 0:
            return
        for top, labels, confidence in self.strips():
            first, last = max(top // STEP - 1, 0), min(-(-(top + len(labels)) // STEP) + 1, self.cells_hw[0])
            per_row = self.cells_hw[1] * self.channels
            cells = self._read(2, first * per_row, (last - first) * per_row, np.dtype(np.float16))
            cells = cells.reshape(last - first, self.cells_hw[1], self.channels)
            for left in range(0, self.hw[1], BLOCK):
                right = min(left + BLOCK, self.hw[1])
                begin, end = max(left // STEP - 1, 0), min(-(-right // STEP) + 1, self.cells_hw[1])
                sums = torch.from_numpy(cells[:, begin:end].astype(np.float32)).permute(2, 0, 1)
                shares = sums[:-1] / sums[-1].clamp_min(1e-6)
                picture = F.interpolate(shares[None], scale_factor=STEP, mode="bilinear", align_corners=False)
                y, x = top - first * STEP, left - begin * STEP
                piece = picture[0, :, y : y + len(labels), x : x + right - left]
                sure, best = (each.numpy() for each in piece.max(dim=0))
                decided = np.where(sure < limits[best], fallback, best)
                inside = np.s_[:, left:right]
                known = labels[inside] != void
                labels[inside] = np.where(known, decided, void)
                confidence[inside] = np.where(known, (sure.clip(0, 1) * 255).round(), 0)
            for file, part in zip(self._files, (labels, confidence), strict=False):
                os.lseek(file, top * self.hw[1] * part.itemsize, os.SEEK_SET)
                os.write(file, np.ascontiguousarray(part).tobytes())

    def strips(self) -> Iterator[tuple[int, np.ndarray, UInt8[np.ndarray, "h w"]]]:
        """From top to bottom: first row, labels, confidence."""
        for top in range(0, self.hw[0], BLOCK):
            shape = min(BLOCK, self.hw[0] - top), self.hw[1]
            parts = [
                self._read(number, top * self.hw[1], shape[0] * shape[1], dtype).reshape(shape)
                for number, dtype in enumerate((self.dtype, np.dtype(np.uint8)))
            ]
            yield top, parts[0], parts[1]

    def _read(self, number: int, start: int, count: int, dtype: np.dtype) -> np.ndarray:
        os.lseek(self._files[number], start * dtype.itemsize, os.SEEK_SET)
        content = bytearray()
        while len(content) < count * dtype.itemsize:
            piece = os.read(self._files[number], count * dtype.itemsize - len(content))
            if not piece:
                raise OSError(f"{self.path} is cut off: remove it and begin again")
            content += piece
        return np.frombuffer(content, dtype)

    def remove(self) -> None:
        """After the results are written."""
        shutil.rmtree(self.path, ignore_errors=True)


def _weights(span: Span, side: int, overlap: int) -> Float[np.ndarray, " n"]:
    """Of a tile's cells along one axis.

    Where tiles overlap, the outer quarter weighs (almost) nothing, so that what the border of a tile spoils
    does not count, and over the middle half the weight goes from one tile to the other. No ramp leads to
    the raster's own border.
    """
    middles = np.arange(span[0] + STEP / 2, span[1], STEP)
    weights = np.ones(len(middles))
    for distance, inside in ((middles - span[0], span[0] > 0), (span[1] - middles, span[1] < side)):
        if inside and overlap:
            weights = weights * (2 * distance / overlap - 0.5).clip(1e-4, 1)
    return weights
