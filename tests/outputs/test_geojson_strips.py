"""Regions strip by strip are those of the whole raster at once."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ovseg.outputs.geojson_strips import Region, collection, regions
from ovseg.outputs.polygons import outlines

VOID = 255


def strips(
    labels: np.ndarray, confidence: np.ndarray, height: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    for top in range(0, len(labels), height):
        yield top, labels[top : top + height], confidence[top : top + height]


def painted(seed: int, hw: tuple[int, int], width: float) -> tuple[np.ndarray, np.ndarray]:
    """Patches of three classes and void; with a width of 0, noise."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(4, *hw))
    if width:
        values = np.stack([ndimage.gaussian_filter(each, width) for each in values])
    labels = values.argmax(0).astype(np.uint8)
    return np.where(labels == 3, VOID, labels).astype(np.uint8), rng.integers(0, 256, hw, dtype=np.uint8)


def filled(found: list[Region], hw: tuple[int, int]) -> np.ndarray:
    """The polygons as a label image again."""
    labels = np.full(hw, VOID, np.uint8)
    y, x = np.mgrid[: hw[0], : hw[1]] + 0.5
    for each in found:
        shape = shapely.Polygon(each.polygon.exterior, each.polygon.holes)
        assert shape.is_valid
        inside = shapely.contains_xy(shape, x, y)
        assert inside.sum() == each.pixels == shape.area
        assert (labels[inside] == VOID).all()
        labels[inside] = each.label
    return labels


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(1, 40), st.integers(1, 30), st.integers(1, 41), st.booleans())
def test_as_at_once(seed: int, rows: int, columns: int, height: int, noise: bool) -> None:
    labels, confidence = painted(seed, (rows, columns), 0 if noise else 1.5)
    found = {
        (each.label, each.pixels, each.confidence, each.polygon.exterior.tobytes(), len(each.polygon.holes))
        for each in regions(strips(labels, confidence, height), VOID)
    }
    expected = set()
    for label in np.unique(labels[labels != VOID]).tolist():
        numbers, _ = ndimage.label(labels == label)
        for number, polygon in enumerate(outlines(labels == label), start=1):
            own = numbers == number
            expected.add(
                (label, own.sum(), confidence[own].mean(), polygon.exterior.tobytes(), len(polygon.holes))
            )
    assert found == expected


@pytest.mark.parametrize("most", [0, 40, 200])
def test_long_regions_are_cut_and_nothing_is_lost(most: int) -> None:
    labels, confidence = painted(3, (60, 50), 1.0)
    whole = list(regions(strips(labels, confidence, 8), VOID))
    cut = list(regions(strips(labels, confidence, 8), VOID, max_corners=most))
    assert len(cut) > len(whole)
    for found in (whole, cut):
        np.testing.assert_array_equal(filled(found, labels.shape), labels)


def test_a_comb_whose_teeth_join_at_the_end_is_one_region() -> None:
    labels = np.zeros((9, 21), np.uint8)
    labels[:8, 1::2] = 1
    for height in (1, 2, 5, 9):
        found = list(regions(strips(labels, labels, height), VOID))
        assert sorted(each.label for each in found) == [0] + [1] * 10
    assert [each.label for each in regions(strips(labels[::-1], labels, 2), VOID)].count(0) == 1


def test_nothing_gives_an_empty_collection() -> None:
    labels = np.full((5, 4), VOID, np.uint8)
    content = json.loads("".join(collection(strips(labels, labels, 2), ("a",), VOID)))
    assert content == {"type": "FeatureCollection", "ovseg": {"units": "pixels"}, "features": []}


def test_memory_does_not_grow_with_the_raster() -> None:
    """A background with ever more holes is cut; without that it would be kept to the end."""

    def endless(count: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for number in range(count):
            labels, _ = painted(number, (64, 256), 1.0)
            yield 64 * number, np.where(labels == 0, 0, 1).astype(np.uint8), np.zeros_like(labels)

    peaks = []
    for count in (8, 40):
        tracemalloc.start()
        assert (
            sum(each.pixels for each in regions(endless(count), VOID, max_corners=5000)) == 64 * 256 * count
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]
