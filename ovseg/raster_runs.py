"""Rasters from disk through a predictor into a run's folder: labels on the same map, in bounded memory.

Labels go, tile by tile, into plain files beside the results, and the numbers of finished tiles into a third
one; so a run that was stopped goes on with the next tile. When all tiles are done, the GeoTIFF is written
from them, strip by strip.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ovseg.batch import SETUP_ERRORS, BatchPredictor, failure
from ovseg.errors import ImageError
from ovseg.geo import RasterReader, Tile, cut_tiles, georeference_of, open_raster, small_hw
from ovseg.inputs import ImageFile
from ovseg.outputs.palette import Scheme, class_colors
from ovseg.outputs.visualize import overlay
from ovseg.outputs.writers import check_formats
from ovseg.results import Segmentation, void_label
from ovseg.run_folder import Record, RunFolder, atomic, describe_source
from ovseg.runs import Outcome, RunSummary

#: Formats of a raster's results: kind, folder and suffix.
FORMATS = {
    "labels": ("labels", ".tif"),
    "scores": ("confidence", ".tif"),
    "overlay": ("overlays", ".jpg"),
    "geojson": ("geojson", ".geojson"),
}
WORK = ".rasters"
PREVIEW_PX = 1600
BLOCK = 256
Predict = Callable[[list[np.ndarray]], list[Segmentation]]


@dataclass(frozen=True)
class RasterOptions:
    """How rasters are read.

    Attributes:
        tile: side of a tile in pixels: what the method sees as one image. Smaller ones show more detail.
        overlap: pixels that neighbouring tiles share.
        bands: see `RasterReader`.
        percentiles: see `RasterReader`.
    """

    tile: int = 512
    overlap: int = 128
    bands: tuple[int, ...] | None = None
    percentiles: tuple[float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """For a run's settings: all of it changes results."""
        return json.loads(json.dumps(asdict(self)))


def run_rasters(
    predict: BatchPredictor,
    rasters: Sequence[ImageFile],
    folder: RunFolder,
    formats: Sequence[str],
    options: RasterOptions | None = None,
    *,
    scheme: Scheme = "vivid",
    opacity: float = 0.55,
    batch_size: int = 1,
    on_outcome: Callable[[Outcome], None] | None = None,
    on_tile: Callable[[ImageFile, int, int], None] | None = None,
    all_images: Sequence[ImageFile] | None = None,
) -> RunSummary:
    """Segment the rasters that are not done yet.

    Args:
        predict: with the words; its writers are not asked.
        rasters: TIFF files, or others that rasterio reads.
        folder: where to, opened.
        formats: of `FORMATS`, or html; labels are always written, and no others are.
        options: how they are read.
        scheme: of the label raster's palette and the overlay.
        opacity: of the overlay.
        batch_size: tiles at a time.
        on_outcome: called after each raster.
        on_tile: called after each batch of tiles with the raster, how many are done, and of how many.
        all_images: of the whole run, where other images than these are part of it.

    Raises:
        VocabularyError, ConfigError, CheckpointError, MissingDependencyError: the set-up is wrong.
    """
    options = options or RasterOptions()
    begin, summary = time.perf_counter(), RunSummary()
    chosen = check_formats(formats)
    chosen += ["overlay"] if "html" in chosen else []
    kinds = ["labels", *(kind for kind in FORMATS if kind in chosen and kind != "labels")]
    todo, stems = folder.plan(rasters, kinds, all_images)
    waiting = {image.name for image in todo}
    for image in rasters:
        if image.name not in waiting:
            outcome = Outcome(image, folder.records[image.name], skipped=True)
        else:
            outcome = _one(predict, image, stems[image.name], folder, kinds, options, scheme, opacity,
                           batch_size, on_tile)  # fmt: skip
        if outcome.failed:
            summary.failed.append((image.name, outcome.record["reason"]))
        else:
            summary.skipped += outcome.skipped
            summary.done += not outcome.skipped
            summary.records.append(outcome.record)
        if on_outcome:
            on_outcome(outcome)
    if not summary.failed:
        shutil.rmtree(folder.path / WORK, ignore_errors=True)
    summary.seconds = time.perf_counter() - begin
    return summary


def _one(
    predict: BatchPredictor,
    image: ImageFile,
    stem: str,
    folder: RunFolder,
    kinds: Sequence[str],
    options: RasterOptions,
    scheme: Scheme,
    opacity: float,
    batch_size: int,
    on_tile: Callable[[ImageFile, int, int], None] | None,
) -> Outcome:
    begin = time.perf_counter()
    where = {"image": image.name, "source": describe_source(image.path)}
    vocabulary = predict.classes
    style = _Style(vocabulary.names, frozenset(vocabulary.background), vocabulary.colors, scheme, opacity)

    def ask(images: list[np.ndarray]) -> list[Segmentation]:
        answers = predict.predictor.answers(
            iter(images),
            vocabulary,
            tasks=("segment",),
            batch_size=len(images),
            templates=predict.templates,
        )
        return [each.of("segment") for each in answers]

    def note(done: int, total: int) -> None:
        if on_tile:
            on_tile(image, done, total)

    outputs = {kind: f"{FORMATS[kind][0]}/{stem}{FORMATS[kind][1]}" for kind in kinds}
    try:
        with open_raster(image.path) as dataset:
            reader = RasterReader(dataset, options.bands, options.percentiles)
            tiles = cut_tiles(reader.hw, options.tile, options.overlap)
            key = json.dumps([folder.fingerprint, where, options.to_dict(), reader.hw])
            void = void_label(len(style.names))
            with Scratch(
                folder.path / WORK, key, reader.hw, np.uint8 if void == 255 else np.uint16
            ) as scratch:
                segment_tiles(reader, tiles, ask, scratch, void, batch_size, note)
                statistics = _write_rasters(dataset, scratch, folder.path, outputs, style, void)
                _write_pictures(reader, folder.path, outputs, style, void)
            record: Record = {
                **where,
                "stem": stem,
                "height": reader.hw[0],
                "width": reader.hw[1],
                "outputs": outputs,
                **statistics,
                "raster": {
                    "epsg": georeference_of(dataset).epsg,
                    "bands": reader.bands,
                    "tiles": len(tiles),
                    "stretch": None
                    if reader.stretch.low is None or reader.stretch.high is None
                    else [reader.stretch.low.tolist(), reader.stretch.high.tolist()],
                },
                "seconds": round(time.perf_counter() - begin, 4),
            }
        scratch.remove()
        folder.commit(record)
        return Outcome(image, record)
    except SETUP_ERRORS:
        raise
    except Exception as error:
        stage = "read" if isinstance(error, ImageError) else "model"
        record = {**where, **failure(stage, error, str(image.path)).record}
        folder.fail(record)
        return Outcome(image, record, failed=True)


class Scratch:
    """Labels and confidence of a raster while it is worked on, as plain files, and which tiles are done.

    Args:
        folder: where to; the files are named after `key`.
        key: all that the results depend on: files of another key are not continued.
        hw: pixels of the raster.
        dtype: of the labels.
    """

    def __init__(self, folder: Path, key: str, hw: tuple[int, int], dtype: Any) -> None:
        self.path = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.hw, self.dtype = hw, np.dtype(dtype)
        self.done: set[int] = set()

    def __enter__(self) -> Scratch:
        self.path.mkdir(parents=True, exist_ok=True)
        self._tiles = open(self.path / "tiles.txt", "a+b", buffering=0)
        self._tiles.seek(0)
        # A process that was killed may have left a torn line, which lacks its semicolon.
        lines = self._tiles.read().split()
        self.done = {int(line[:-1]) for line in lines if line.endswith(b";")}
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._files = [os.open(self.path / name, flags) for name in ("labels", "confidence")]
        for file, size in zip(self._files, (self.dtype.itemsize, 1), strict=True):
            os.truncate(file, self.hw[0] * self.hw[1] * size)
        return self

    def __exit__(self, *reason: object) -> None:
        self._tiles.close()
        for file in self._files:
            os.close(file)

    def write(self, number: int, tile: Tile, labels: np.ndarray, confidence: np.ndarray) -> None:
        """The core of a tile, after which it is done."""
        (top, _), (left, _) = tile.core_rows, tile.core_columns
        for file, part in zip(self._files, (labels.astype(self.dtype), confidence), strict=True):
            for row, values in enumerate(np.ascontiguousarray(part), start=top):
                os.lseek(file, (row * self.hw[1] + left) * part.itemsize, os.SEEK_SET)
                os.write(file, values)
        self._tiles.write(b"\n%d;" % number)
        self.done.add(number)

    def strips(self, height: int = BLOCK) -> Iterator[tuple[int, np.ndarray, UInt8[np.ndarray, "h w"]]]:
        """From top to bottom: first row, labels, confidence."""
        for top in range(0, self.hw[0], height):
            shape = min(height, self.hw[0] - top), self.hw[1]
            parts = []
            for file, dtype in zip(self._files, (self.dtype, np.dtype(np.uint8)), strict=True):
                os.lseek(file, top * self.hw[1] * dtype.itemsize, os.SEEK_SET)
                content = bytearray()
                while len(content) < shape[0] * shape[1] * dtype.itemsize:
                    content += os.read(file, shape[0] * shape[1] * dtype.itemsize - len(content))
                parts.append(np.frombuffer(content, dtype).reshape(shape))
            yield top, parts[0], parts[1]

    def remove(self) -> None:
        """After the results are written."""
        shutil.rmtree(self.path, ignore_errors=True)


def segment_tiles(
    reader: RasterReader,
    tiles: Sequence[Tile],
    ask: Predict,
    scratch: Scratch,
    void: int,
    batch_size: int = 1,
    note: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """All tiles that are not done: read, asked, and their cores kept. Tiles without values are not asked."""
    waiting = iter([number for number in range(len(tiles)) if number not in scratch.done])
    note(len(scratch.done), len(tiles))
    while batch := list(islice(waiting, batch_size)):
        read = [(number, *reader.tile(tiles[number])) for number in batch]
        asked = [(number, rgb) for number, rgb, valid in read if valid.any()]
        found = dict(zip([n for n, _ in asked], ask([rgb for _, rgb in asked]) if asked else [], strict=True))
        for number, _, valid in read:
            inner = tiles[number].inner
            core = valid[inner]
            labels, confidence = np.full(core.shape, void), np.zeros(core.shape, np.uint8)
            if number in found:
                labels = np.where(core, found[number].labels[inner], void)
                sure = (found[number].confidence[inner].clip(0, 1) * 255).round().astype(np.uint8)
                confidence = np.where(core, sure, 0).astype(np.uint8)
            scratch.write(number, tiles[number], labels, confidence)
        note(len(scratch.done), len(tiles))


@dataclass(frozen=True)
class _Style:
    names: tuple[str, ...]
    background: frozenset[int]
    colors: Any
    scheme: Scheme
    opacity: float


def _write_rasters(
    dataset: Any, scratch: Scratch, folder: Path, outputs: dict[str, str], style: _Style, void: int
) -> Record:
    """Label and confidence rasters on the map of the source; and how much there is of each class."""
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "height": scratch.hw[0],
        "width": scratch.hw[1],
        "count": 1,
        "crs": dataset.crs,
        "transform": dataset.transform,
        "tiled": True,
        "blockxsize": BLOCK,
        "blockysize": BLOCK,
        "compress": "deflate",
        "BIGTIFF": "IF_SAFER",
    }
    pixels = np.zeros(void + 1, np.int64)
    sums = np.zeros(void + 1)
    paths = [folder / outputs["labels"], *([folder / outputs["scores"]] if "scores" in outputs else [])]
    parts = [path.with_name(f".ovseg-{path.name}.tmp") for path in paths]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    names = json.dumps({"classes": list(style.names), "void": void}, ensure_ascii=False)
    with open_raster(parts[0], "w", dtype=scratch.dtype.name, nodata=void, **profile) as out:
        out.update_tags(ovseg=names)
        if void == 255:
            colors = class_colors(style.names, style.background, style.colors, style.scheme)
            out.write_colormap(1, {index: (*color, 255) for index, color in enumerate(colors)})
        for top, labels, confidence in scratch.strips():
            out.write(labels, 1, window=((top, top + len(labels)), (0, scratch.hw[1])))
            flat = labels.ravel()
            pixels += np.bincount(flat, minlength=void + 1)
            sums += np.bincount(flat, weights=confidence.ravel(), minlength=void + 1)
    if len(parts) > 1:
        with open_raster(parts[1], "w", dtype="uint8", **profile) as out:
            out.update_tags(ovseg="probability of the label, times 255")
            out.scales = (1 / 255,)
            for top, _, confidence in scratch.strips():
                out.write(confidence, 1, window=((top, top + len(confidence)), (0, scratch.hw[1])))
    for part, path in zip(parts, paths, strict=True):
        os.replace(part, path)
    total = scratch.hw[0] * scratch.hw[1]
    classes = [
        {
            "id": int(index),
            "name": style.names[index],
            "pixels": int(pixels[index]),
            "share": round(float(pixels[index] / total), 6),
            "confidence": round(float(sums[index] / pixels[index] / 255), 4),
        }
        for index in np.argsort(-pixels[: len(style.names)], kind="stable")
        if pixels[index]
    ]
    return {
        "classes": classes,
        "void": {"pixels": int(pixels[void]), "share": round(float(pixels[void] / total), 6)},
    }


def _write_pictures(
    reader: RasterReader, folder: Path, outputs: dict[str, str], style: _Style, void: int
) -> None:
    """A small overlay, and polygons on the map, from the label raster."""
    with open_raster(folder / outputs["labels"]) as labels:
        if "overlay" in outputs:
            size_hw = small_hw(reader.hw, PREVIEW_PX)
            small = labels.read(1, out_shape=size_hw)
            shown = Segmentation(
                small,
                style.names,
                np.ones(size_hw, np.float32),
                style.background,
                None if style.colors is None else tuple(style.colors),
                void,
            )
            picture: Image.Image = overlay(
                reader.small(PREVIEW_PX), shown, opacity=style.opacity, scheme=style.scheme
            )
            with atomic(folder / outputs["overlay"]) as stream:
                picture.save(stream, "JPEG", quality=92, subsampling=0)
        if "geojson" in outputs:
            with atomic(folder / outputs["geojson"]) as stream:
                for piece in _collection(labels, style.names, void):
                    stream.write(piece.encode())


def _collection(labels: Any, names: Sequence[str], void: int) -> Iterator[str]:
    """Regions of a label raster as GeoJSON; memory grows with their number and not with the raster."""
    import rasterio
    from rasterio.features import shapes

    place = georeference_of(labels)
    head: dict[str, Any] = {"type": "FeatureCollection", "ovseg": {"units": "crs" if place.wkt else "pixels"}}
    if place.wkt:
        head["crs"] = place.crs_member()
    yield json.dumps(head)[:-1] + ', "features": ['
    number = 0
    for geometry, value in shapes(rasterio.band(labels, 1), connectivity=4, transform=labels.transform):
        if int(value) == void:
            continue
        number += 1
        found = {
            "type": "Feature",
            "id": number,
            "properties": {"name": names[int(value)], "class_id": int(value)},
            "geometry": geometry,
        }
        yield (",\n" if number > 1 else "\n") + json.dumps(found, ensure_ascii=False)
    yield "]}\n"
