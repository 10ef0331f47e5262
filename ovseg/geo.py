"""Rasters that are too large for memory, or lie on a map: read and written window by window.

A raster is cut into tiles of one size that overlap; of each answer only the core is kept, so that no pixel is
decided near a tile's border (but at the raster's own). Tiles begin at multiples of the core: a method with
sliding windows and no resizing, whose stride divides core and margin and whose crop fits in the margin, gives
the very labels that the raster as one image would get.

All tiles go through one stretch to 8 bits: percentiles of the whole raster, computed once from a sample. A
stretch of each tile's own would show as seams.

In memory are a few tiles, GDAL's cache (`CACHE_MB`) and a strip of the result, whatever the raster's size.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from ovseg.errors import ConfigError, ImageError, MissingDependencyError

#: Suffixes of files that may be georeferenced.
SUFFIXES = frozenset({".tif", ".tiff"})
#: Pixels above which a TIFF is a raster even without a place on a map: those that images may have.
LARGE = 89_478_485
#: Tiles begin and end at multiples of so many pixels; up to that many beyond the raster's end are repeated.
GRID = 8
#: Bound of GDAL's cache of blocks.
CACHE_MB = 64
#: Sides of the sample that the stretch is computed from, and of how many pieces it is along a longer side.
SAMPLE_SIDE, SAMPLES = 512, 16

Span = tuple[int, int]


@dataclass(frozen=True)
class Georeference:
    """Where pixels are on a map.

    Attributes:
        transform: `x = a * column + b * row + c`, `y = d * column + e * row + f`, as (a, b, c, d, e, f).
        epsg: of the reference system, where it has a number.
        wkt: its definition, "" where it has none.
    """

    transform: tuple[float, float, float, float, float, float]
    epsg: int | None
    wkt: str

    def to_map(self, points_xy: np.ndarray) -> np.ndarray:
        """Coordinates `(n, 2)` of pixels, top left corner (0, 0), on the map."""
        a, b, c, d, e, f = self.transform
        x, y = points_xy.T.astype(float)
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)

    def crs_member(self) -> dict[str, Any] | None:
        """GeoJSON's member of 2008 that names the system."""
        if not self.wkt:
            return None
        name = self.wkt if self.epsg is None else f"urn:ogc:def:crs:EPSG::{self.epsg}"
        if self.epsg == 4326:  # EPSG's own order is latitude, longitude; GeoTIFF and GeoJSON have x first
            name = "urn:ogc:def:crs:OGC:1.3:CRS84"
        return {"type": "name", "properties": {"name": name}}


def read_georeference(path: Path) -> Georeference | None:
    """Where a TIFF lies; None for other files, without a reference system, or without rasterio."""
    if path.suffix.lower() not in SUFFIXES:
        return None
    try:
        with open_raster(path) as dataset:
            return None if dataset.crs is None else georeference_of(dataset)
    except (ImageError, MissingDependencyError):
        return None


def is_raster(path: Path) -> bool:
    """Whether a file is better read by window: a TIFF on a map, or a larger one than images may be."""
    if path.suffix.lower() not in SUFFIXES:
        return False
    try:
        with open_raster(path) as dataset:
            return dataset.crs is not None or dataset.width * dataset.height > LARGE
    except (ImageError, MissingDependencyError):
        return False


def georeference_of(dataset: Any) -> Georeference:
    """Of an open dataset of rasterio."""
    crs = dataset.crs
    return Georeference(
        tuple(dataset.transform)[:6],
        None if crs is None else crs.to_epsg(),
        "" if crs is None else crs.to_wkt(),
    )


@contextmanager
def open_raster(path: Path, mode: str = "r", **profile: Any) -> Iterator[Any]:
    """A dataset of rasterio, with a bounded cache.

    Raises:
        ImageError: it cannot be read; the message starts with the path.
        MissingDependencyError: rasterio is not installed.
    """
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning, RasterioError
    except ImportError as error:
        raise MissingDependencyError("rasters need rasterio: pip install 'ovseg[geo]'") from error
    try:
        # In bytes: rasterio does not pass on GDAL's reading of small numbers as megabytes.
        with rasterio.Env(GDAL_CACHEMAX=CACHE_MB * 2**20), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, mode, **profile) as dataset:
                yield dataset
    except RasterioError as error:
        raise ImageError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Tile:
    """A part of a raster: what is read, and of that what is kept.

    Attributes:
        rows, columns: read, as (start, end).
        core_rows, core_columns: kept; cores cover the raster, each pixel once.
    """

    rows: Span
    columns: Span
    core_rows: Span
    core_columns: Span

    @property
    def inner(self) -> tuple[slice, slice]:
        """The core, as slices of what was read."""
        (top, _), (left, _) = self.rows, self.columns
        (first, last), (begin, end) = self.core_rows, self.core_columns
        return slice(first - top, last - top), slice(begin - left, end - left)


def cut_tiles(raster_hw: tuple[int, int], side: int, overlap: int) -> list[Tile]:
    """Tiles of a raster, row by row; all have the same size, or the raster's where that is smaller.

    Args:
        raster_hw: pixels.
        side: of a tile.
        overlap: pixels that neighbours share; half of them are dropped on each side.

    Raises:
        ConfigError: the two do not go together.
    """
    if side < 32 or overlap < 0 or overlap % 16 or 2 * overlap > side or side % 16:
        raise ConfigError(
            f"tiles of {side} pixels with an overlap of {overlap}: expected multiples of 16, a side "
            f"of at least 32, and an overlap of at most half of it, such as 512 and 128"
        )
    rows, columns = (_axis(length, side, overlap) for length in raster_hw)
    return [Tile(y, x, core_y, core_x) for y, core_y in rows for x, core_x in columns]


def _axis(length: int, side: int, overlap: int) -> list[tuple[Span, Span]]:
    core, whole, found = side - overlap, -(-length // GRID) * GRID, []
    for first in range(0, length, core):
        start = min(max(first - overlap // 2, 0), max(whole - side, 0))
        found.append(((start, min(start + side, whole)), (first, min(first + core, length))))
    return found


@dataclass(frozen=True)
class Stretch:
    """From a raster's values to 8 bits, the same everywhere: linear from `low` to `high` in each band.

    Attributes:
        low, high: `(3,)`, or None where values are 8 bits already and stay.
    """

    low: Float[np.ndarray, "3"] | None = None
    high: Float[np.ndarray, "3"] | None = None

    def __call__(self, values: np.ndarray) -> UInt8[np.ndarray, "h w 3"]:
        """Bands `(3, h, w)` as RGB; what is not a number is black."""
        if self.low is None or self.high is None:
            return np.ascontiguousarray(values.transpose(1, 2, 0), np.uint8)
        low, span = (each.astype(np.float32)[:, None, None] for each in (self.low, self.high - self.low))
        shares = np.nan_to_num((values.astype(np.float32) - low) / span, nan=0.0, posinf=1.0, neginf=0.0)
        return np.ascontiguousarray((shares.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))


class RasterReader:
    """A raster's pixels as the networks want them.

    Args:
        dataset: of `open_raster`.
        bands: three numbers from 1 for red, green and blue, or one for grey; by default what the file calls
            red, green and blue, else its first three, or its only one.
        percentiles: of the values that become black and white; None where values are 8 bits and stay as they
            are, else 2 and 98.

    Raises:
        ConfigError: a band that is not there, or percentiles that are none.
        ImageError: its values are no numbers of a line.
    """

    def __init__(
        self, dataset: Any, bands: Sequence[int] | None = None, percentiles: tuple[float, float] | None = None
    ) -> None:
        self.dataset = dataset
        self.bands = _choose(dataset, bands)
        self.hw: tuple[int, int] = (dataset.height, dataset.width)
        if min(self.hw) < 8:
            raise ImageError(
                f"{dataset.name}: raster is {self.hw[0]}x{self.hw[1]} (HxW): a side is too short"
            )
        kinds = {np.dtype(dataset.dtypes[band - 1]) for band in self.bands}
        if any(kind.kind not in "uif" for kind in kinds):
            raise ImageError(f"{dataset.name}: values are {', '.join(map(str, kinds))}: expected numbers")
        if percentiles is not None and not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise ConfigError(f"percentiles are {percentiles}: expected two of 0 to 100, as 2 and 98")
        plain = percentiles is None and kinds == {np.dtype(np.uint8)}
        self.stretch = Stretch() if plain else self._sample(percentiles or (2.0, 98.0))

    def _sample(self, percentiles: tuple[float, float]) -> Stretch:
        side = SAMPLE_SIDE // SAMPLES
        rows, columns = (
            [(0, length)]
            if length <= SAMPLE_SIDE
            else [(at, at + side) for at in np.linspace(0, length - side, SAMPLES).astype(int).tolist()]
            for length in self.hw
        )
        parts = [self._read(y, x) for y in rows for x in columns]
        known = np.concatenate([values[:, valid] for values, valid in parts], axis=1)
        if not known.size:
            return Stretch(np.zeros(3), np.ones(3))
        low, high = np.percentile(known, percentiles, axis=1).astype(np.float64)
        return Stretch(low, np.where(high > low, high, low + 1))

    def _read(
        self, rows: Span | None = None, columns: Span | None = None, out_hw: tuple[int, ...] | None = None
    ) -> tuple[np.ndarray, Bool[np.ndarray, "h w"]]:
        """Values `(3, h, w)`, and where there are any."""
        window = None if rows is None else (rows, columns)
        shape = {} if out_hw is None else {"out_shape": (len(self.bands), *out_hw)}
        flat = {} if out_hw is None else {"out_shape": out_hw}
        values = self.dataset.read(self.bands, window=window, **shape)
        valid = self.dataset.dataset_mask(window=window, **flat) > 0
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(axis=0)
        return np.broadcast_to(values, (3, *values.shape[1:])), valid

    def tile(self, tile: Tile) -> tuple[UInt8[np.ndarray, "h w 3"], Bool[np.ndarray, "h w"]]:
        """RGB of a tile, and where the raster has values."""
        inside = [
            (span[0], min(span[1], side))
            for span, side in zip((tile.rows, tile.columns), self.hw, strict=True)
        ]
        values, valid = self._read(*inside)
        beyond = [
            (0, span[1] - end) for span, (_, end) in zip((tile.rows, tile.columns), inside, strict=True)
        ]
        return np.pad(self.stretch(values), (*beyond, (0, 0)), "edge"), np.pad(valid, beyond)

    def small(self, longest_px: int) -> UInt8[np.ndarray, "h w 3"]:
        """The whole raster as a small picture."""
        return self.stretch(self._read(out_hw=small_hw(self.hw, longest_px))[0])


def small_hw(raster_hw: tuple[int, int], longest_px: int) -> tuple[int, int]:
    """The size at which the longer side has at most so many pixels."""
    factor = min(longest_px / max(raster_hw), 1.0)
    return max(round(raster_hw[0] * factor), 1), max(round(raster_hw[1] * factor), 1)


def _choose(dataset: Any, bands: Sequence[int] | None) -> list[int]:
    if bands is not None:
        chosen = list(bands)
        if len(chosen) not in (1, 3) or not all(1 <= band <= dataset.count for band in chosen):
            raise ConfigError(
                f"bands {', '.join(map(str, chosen))}: expected one or three of 1 to "
                f"{dataset.count}, as 4,3,2"
            )
        return chosen
    names = [each.name for each in dataset.colorinterp]
    if {"red", "green", "blue"} <= set(names):
        return [names.index(color) + 1 for color in ("red", "green", "blue")]
    return [1, 2, 3] if dataset.count >= 3 else [1]
