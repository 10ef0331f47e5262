"""Regions of a raster as GeoJSON, strip by strip: in memory are the outlines of regions that are still open.

A region is written when it ends, so a raster of any height takes the memory of a strip. When the outlines of
open regions grow too long together, the longest are cut along a row, and go on below as others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ovseg.outputs.geojson_files import placed
from ovseg.outputs.polygons import Polygon, corners, polygons

#: Corners of all open regions; beyond, those with more than an equal share are cut.
MAX_CORNERS = 500_000
#: Pixels that are looked at together, at least a row.
MAX_PIXELS = 1_000_000

Strip = tuple[int, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Region:
    """Connected pixels of one class.

    Attributes:
        label: of the class.
        pixels: how many.
        confidence: their mean, of 255.
        polygon: along their edges.
    """

    label: int
    pixels: int
    confidence: float
    polygon: Polygon


@dataclass
class _Open:
    """What is known of regions that reach the last row; numbers are 1 to n, and 0 is void."""

    row: Int[np.ndarray, " W"]
    numbers: Int[np.ndarray, " W"]
    corners: Int[np.ndarray, "5 n"]
    inside: Shaped[np.ndarray, " n"]
    sums: Shaped[np.ndarray, "3 m"]


def collection(
    strips: Iterable[Strip],
    names: Sequence[str],
    void: int,
    to_map: Callable[[np.ndarray], np.ndarray] | None = None,
    crs: dict[str, Any] | None = None,
) -> Iterator[str]:
    """A feature collection, piece by piece.

    Args:
        strips: from top to bottom: first row, labels, confidence as bytes.
        names: of the classes.
        void: label of pixels that are of no region.
        to_map: coordinates `(n, 2)` of pixels to those of the map; None leaves them.
        crs: see `ovseg.outputs.geojson_files`.
    """
    head: dict[str, Any] = {"type": "FeatureCollection"}
    head |= {} if crs is None else {"crs": crs}
    head["ovseg"] = {"units": "pixels" if to_map is None else "crs"}
    yield json.dumps(head)[:-1] + ', "features": ['
    for number, region in enumerate(regions(strips, void), start=1):
        rings = [region.polygon.exterior, *region.polygon.holes]
        feature = {
            "type": "Feature",
            "id": number,
            "properties": {
                "name": names[region.label],
                "class_id": region.label,
                "score": round(region.confidence / 255, 4),
                "pixels": region.pixels,
            },
            "geometry": {"type": "Polygon", "coordinates": placed(rings, to_map)},
        }
        yield (",\n" if number > 1 else "\n") + json.dumps(feature, ensure_ascii=False)
    yield "]}\n"


def regions(strips: Iterable[Strip], void: int, max_corners: int = MAX_CORNERS) -> Iterator[Region]:
    """Regions of connected pixels (by their sides), each when its last row has come."""
    waiting: _Open | None = None
    bottom = 0
    for top, labels, confidence in _thin(strips):
        if waiting is None:
            nothing = np.zeros(labels.shape[1], np.int32)
            waiting = _Open(
                nothing - 1, nothing, np.zeros((5, 0), int), np.zeros(0, bool), np.zeros((3, 1), np.int64)
            )
        known = np.where(labels == void, -1, labels.astype(np.int32))
        waiting, ended = _step(waiting, top, known, confidence, max_corners)
        yield from ended
        bottom = top + len(labels)
    if waiting is not None:
        last = np.full((1, len(waiting.row)), -1, np.int32)
        yield from _step(waiting, bottom, last, np.zeros_like(last), max_corners)[1]


def _step(
    before: _Open, top: int, labels: np.ndarray, confidence: np.ndarray, max_corners: int
) -> tuple[_Open, list[Region]]:
    """The next rows: what is open after them, and what has ended."""
    rows = np.concatenate([before.row[None], labels])
    numbers, count = _connected(rows, before.numbers)
    renumbered = np.zeros(before.sums.shape[1], int)
    renumbered[before.numbers] = numbers[0]
    renumbered[0] = 0

    fresh, inside = corners(np.pad(numbers, ((0, 0), (1, 1))))
    fresh[0] += top
    old = before.corners.copy()
    old[4] = renumbered[old[4]]
    points, inside = np.concatenate([old, fresh], axis=1), np.concatenate([before.inside, inside])

    # Of each region: pixels, the sum of their confidence, and the label.
    flat = numbers[1:].ravel()
    sums = np.zeros((3, count + 1), np.int64)
    sums[0] = np.bincount(flat, minlength=count + 1)
    sums[1] = np.bincount(flat, weights=confidence.ravel(), minlength=count + 1)
    np.add.at(sums[:2].T, renumbered, before.sums[:2].T)
    sums[2, flat] = labels.ravel()
    sums[2, renumbered] = before.sums[2]

    last = numbers[-1]
    stays = np.zeros(count + 1, bool)
    stays[last] = True
    stays[0] = False
    ended = _ended(points[:, ~stays[points[4]]], inside[~stays[points[4]]], sums)

    # Those that stay are numbered anew; a cut one keeps its number in the row, but nothing below is like it.
    renew = np.where(stays, np.cumsum(stays), 0)
    kept = stays[points[4]]
    points, inside, last = points[:, kept], inside[kept], renew[last]
    points[4] = renew[points[4]]
    row = rows[-1]
    if points.shape[1] > max_corners:
        number = np.bincount(points[4], minlength=int(stays.sum()) + 1)
        row = np.where(number[last] > max_corners / stays.sum(), -1 - last, row)
    return _Open(row, last, points, inside, np.pad(sums[:, stays], ((0, 0), (1, 0)))), ended


def _ended(points: np.ndarray, inside: np.ndarray, sums: np.ndarray) -> list[Region]:
    return [
        Region(int(sums[2, each]), int(sums[0, each]), float(sums[1, each] / sums[0, each]), polygon)
        for each, polygon in polygons(points, inside).items()
    ]


def _connected(
    rows: Int[np.ndarray, "h W"], carried: Int[np.ndarray, " W"]
) -> tuple[Int[np.ndarray, "h W"], int]:
    """Numbers of connected pixels of one label, from 1; those below 0 are 0. And how many there are.

    Args:
        rows: labels; below 0 are those of no region, but in the first row, where `carried` has the numbers.
        carried: of the first row: what has the same number there is connected, by rows above.
    """
    begins = np.ones(rows.shape, bool)
    begins[:, 1:] = rows[:, 1:] != rows[:, :-1]
    runs = np.cumsum(begins.ravel(), dtype=np.int32).reshape(rows.shape) - 1
    meet = rows[1:] == rows[:-1]
    meet[:, 1:] &= begins[1:, 1:] | begins[:-1, 1:]  # once for each pair of runs
    starts = np.flatnonzero(begins[0])
    _, first, same = np.unique(carried[starts], return_index=True, return_inverse=True)
    one = np.concatenate([runs[:-1][meet], np.arange(len(starts))])
    other = np.concatenate([runs[1:][meet], first[same]])
    total = int(runs[-1, -1]) + 1
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(total, total))
    known = rows.ravel()[begins.ravel()] >= 0
    known[: len(starts)] = carried[starts] > 0
    _, part = connected_components(graph, directed=False)
    _, part = np.unique(np.where(known, part, -1), return_inverse=True)
    if known.all():
        part = part + 1
    return part.astype(np.int32)[runs], int(part.max())


def _thin(strips: Iterable[Strip]) -> Iterator[Strip]:
    for top, labels, confidence in strips:
        step = max(MAX_PIXELS // labels.shape[1], 1)
        for at in range(0, len(labels), step):
            yield top + at, labels[at : at + step], confidence[at : at + step]
