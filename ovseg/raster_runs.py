"""Rasters from disk through a predictor into a run's folder: labels on the same map, in bounded memory.

Labels and class probabilities go, tile by tile, into plain files beside the results, and the numbers of
finished tiles into another one; so a run that was stopped goes on with the next tile. When all tiles are
done, their probabilities are blended, and the GeoTIFF is written, strip by strip.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovseg.batch import SETUP_ERRORS, BatchPredictor, failure
from ovseg.errors import ImageError
from ovseg.geo import (
    SUFFIXES,
    RasterReader,
    Tile,
    cut_tiles,
    georeference_of,
    is_raster,
    open_raster,
    small_hw,
)
from ovseg.inputs import ImageFile
from ovseg.outputs import geojson_strips
from ovseg.outputs.palette import Scheme, class_colors
from ovseg.outputs.visualize import overlay
from ovseg.outputs.writers import check_formats
from ovseg.raster_scratch import BLOCK, Scratch
from ovseg.record_file import atomic
from ovseg.records import Record
from ovseg.results import Segmentation, void_label
from ovseg.run_folder import RunFolder, describe_source
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
Predict = Callable[[list[np.ndarray]], list[Segmentation]]


@dataclass(frozen=True)
class RasterOptions:
    """How rasters are read.

    Attributes:
        tile: side of a tile in pixels: what the method sees as one image. Smaller ones show more detail.
        overlap: pixels that neighbouring tiles share.
        bands: see `RasterReader`.
        percentiles: see `RasterReader`.
        blend: where tiles overlap, average their class probabilities and decide again, if the predictor keeps
            scores; else each pixel has the label of the tile in whose core it lies, and refined outlines.
        threshold: after blending, of classes that have none of their own; see `SegmentationHead`.
    """

    tile: int = 512
    overlap: int = 128
    bands: tuple[int, ...] | None = None
    percentiles: tuple[float, float] | None = None
    blend: bool = True
    threshold: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """For a run's settings: all of it changes results."""
        return json.loads(json.dumps(asdict(self)))


def split_rasters(
    images: Sequence[ImageFile], *, every: bool = False
) -> tuple[list[ImageFile], list[ImageFile]]:
    """The rasters among images, and the others.

    Args:
        images: of a run.
        every: all TIFFs are rasters; else those on a map, and those too large for an image.
    """
    rasters = [
        each for each in images if each.path.suffix.lower() in SUFFIXES and (every or is_raster(each.path))
    ]
    chosen = {each.name for each in rasters}
    return rasters, [each for each in images if each.name not in chosen]


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
    summary: RunSummary | None = None,
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
        summary: of those other images, to which these are added.

    Raises:
        VocabularyError, ConfigError, CheckpointError, MissingDependencyError: the set-up is wrong.
    """
    options = options or RasterOptions()
    begin, summary = time.perf_counter(), summary or RunSummary()
    chosen = check_formats(formats)
    chosen += ["overlay"] if "html" in chosen else []
    kinds = ["labels", *(kind for kind in FORMATS if kind in chosen and kind != "labels")]
    todo, stems = folder.plan(rasters, kinds, all_images)
    waiting = {image.name for image in todo}
    for image in rasters:
        if image.name not in waiting:
            outcome = Outcome(image, folder.timed(image.name), skipped=True)
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
    if not any(each.name in folder.errors for each in rasters):
        shutil.rmtree(folder.path / WORK, ignore_errors=True)
    summary.seconds += time.perf_counter() - begin
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
            dtype = np.uint8 if void == 255 else np.uint16
            with Scratch(folder.path / WORK, key, reader.hw, dtype, len(style.names)) as scratch:
                segment_tiles(
                    reader, tiles, ask, scratch, void, options.overlap,
                    blend=options.blend, batch_size=batch_size, note=note,
                )  # fmt: skip
                scratch.blend(void, *_limits(vocabulary, options.threshold, void))
                statistics = _write_rasters(dataset, scratch, folder.path, outputs, style, void)
                paths = {kind: folder.path / output for kind, output in outputs.items()}
                if "overlay" in paths:
                    _write_overlay(reader, paths["labels"], paths["overlay"], style, void)
                if "geojson" in paths:
                    _write_regions(dataset, scratch, paths["geojson"], style.names, void)
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


def segment_tiles(
    reader: RasterReader,
    tiles: Sequence[Tile],
    ask: Predict,
    scratch: Scratch,
    void: int,
    overlap: int,
    *,
    blend: bool = True,
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
                scores = found[number].scores
                if blend and scores is not None:
                    scratch.add_scores(tiles[number], scores, overlap)
                labels = np.where(core, found[number].labels[inner], void)
                sure = (found[number].confidence[inner].clip(0, 1) * 255).round().astype(np.uint8)
                confidence = np.where(core, sure, 0).astype(np.uint8)
            scratch.write(number, tiles[number], labels, confidence)
        note(len(scratch.done), len(tiles))


def _limits(vocabulary: Any, threshold: float, void: int) -> tuple[np.ndarray, int]:
    """Least probability by class, and the label of what is less probable."""
    own = [entry.threshold for entry in vocabulary.classes]
    limits = np.array([threshold if each is None else each for each in own], np.float32)
    return limits, min(vocabulary.background) if vocabulary.background else void


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


def _write_overlay(reader: RasterReader, labels: Path, target: Path, style: _Style, void: int) -> None:
    """A small overlay."""
    size_hw = small_hw(reader.hw, PREVIEW_PX)
    with open_raster(labels) as dataset:
        small = dataset.read(1, out_shape=size_hw)
    colors = None if style.colors is None else tuple(style.colors)
    sure = np.ones(size_hw, np.float32)
    shown = Segmentation(small, style.names, sure, style.background, colors, void)
    picture: Image.Image = overlay(
        reader.small(PREVIEW_PX), shown, opacity=style.opacity, scheme=style.scheme
    )
    with atomic(target) as stream:
        picture.save(stream, "JPEG", quality=92, subsampling=0)


def _write_regions(dataset: Any, scratch: Scratch, target: Path, names: Sequence[str], void: int) -> None:
    """Polygons, on the map where the raster is on one."""
    place = georeference_of(dataset)
    to_map, crs = (place.to_map, place.crs_member()) if place.wkt else (None, None)
    with atomic(target) as stream:
        for piece in geojson_strips.collection(scratch.strips(), names, void, to_map, crs):
            stream.write(piece.encode())
