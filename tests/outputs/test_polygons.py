"""Polygons of masks: exact, valid, and read back by the tools that people use."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.features import rasterize
from run_helpers import FakeSegmenter, lines, save

from ovseg.batch import BatchPredictor
from ovseg.detection_results import Detections
from ovseg.inputs import find_images
from ovseg.outputs import geojson_files, labelme_files
from ovseg.outputs.polygons import outlines, simple_outlines
from ovseg.outputs.run_files import write_run_files
from ovseg.outputs.shapes import shapes_of
from ovseg.outputs.writers import build_writers
from ovseg.panoptic_results import Panoptic
from ovseg.results import Segmentation
from ovseg.run_folder import RunFolder
from ovseg.runs import run
from ovseg.text.vocabulary import Vocabulary

#: Of rasterio's own arithmetic.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

masks = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda hw: arrays(bool, hw))


def filled(polygons: list, hw: tuple[int, int]) -> np.ndarray:
    if not polygons:
        return np.zeros(hw, bool)
    return rasterize([(each, 1) for each in polygons], out_shape=hw).astype(bool)


@settings(max_examples=150, deadline=None)
@given(masks)
def test_outlines_are_valid_and_fill_to_the_mask(mask: np.ndarray) -> None:
    found = [shapely.Polygon(each.exterior, each.holes) for each in outlines(mask)]
    assert all(each.is_valid for each in found)
    assert sum(each.area for each in found) == mask.sum() == sum(each.area for each in outlines(mask))
    np.testing.assert_array_equal(filled(found, mask.shape), mask)


@settings(max_examples=80, deadline=None)
@given(masks)
def test_simple_outlines_have_no_holes_and_cover_the_mask(mask: np.ndarray) -> None:
    found = [shapely.Polygon(each) for each in simple_outlines(mask)]
    assert all(each.is_valid for each in found)
    assert sum(each.area for each in found) == mask.sum()
    np.testing.assert_array_equal(filled(found, mask.shape), mask)


def test_a_ring_of_pixels_has_one_hole() -> None:
    mask = np.ones((3, 4), bool)
    mask[1, 1:3] = False
    [found] = outlines(mask, (10, 20))
    assert found.exterior.tolist() == [[10, 20], [14, 20], [14, 23], [10, 23]]
    assert sorted(map(tuple, found.holes[0].tolist())) == [(11, 21), (11, 22), (13, 21), (13, 22)]
    assert len(simple_outlines(mask)) == 2


NAMES = ("cat", "grass", "dög 犬")
HW = (30, 40)


@pytest.fixture
def panoptic() -> Panoptic:
    """A cat with a hole on grass, and one in two pieces."""
    segments = np.zeros(HW, np.int32)
    segments[20:] = 3
    segments[5:25, 5:20] = 1
    segments[10:15, 8:12] = 0
    segments[2:8, 25:30] = 2
    segments[12:16, 32:39] = 2
    return Panoptic(
        segments,
        np.array([0, 2, 1]),
        np.array([0.9, 0.8, 0.7], np.float32),
        np.array([True, True, False]),
        NAMES,
    )


def results(panoptic: Panoptic) -> dict[str, object]:
    labels = np.where(panoptic.segments == 0, 255, panoptic.labels[panoptic.segments - 1]).astype(np.uint8)
    boxes = Detections(
        np.array([[1.5, 2, 8, 9.25]], np.float32), np.array([1]), np.array([0.5], np.float32), NAMES, HW
    )
    return {
        "segment": Segmentation(labels, NAMES, np.full(HW, 0.25, np.float32)),
        "instances": panoptic,
        "detect": panoptic.detections(),
        "boxes": boxes,
    }


def test_geojson_is_read_by_shapely(panoptic: Panoptic) -> None:
    for task, result in results(panoptic).items():
        stream = io.BytesIO()
        geojson_files.write(stream, result)
        content = json.loads(stream.getvalue())
        assert content["type"] == "FeatureCollection"
        assert content["ovseg"] == {"units": "pixels", "image_hw": list(HW)}
        geometries = [shapely.geometry.shape(each["geometry"]) for each in content["features"]]
        assert shapely.from_geojson(stream.getvalue().decode()).is_valid
        kinds = [each["properties"]["name"] for each in content["features"]]
        if task == "segment":
            assert kinds == ["cat", "grass", "dög 犬", "dög 犬"]
            assert all(each["properties"]["score"] == 0.25 for each in content["features"])
        elif task == "boxes":
            assert geometries[0].bounds == (1.5, 2, 8, 9.25)
            continue
        else:
            assert kinds[:2] == ["cat", "dög 犬"]
            assert geometries[1].geom_type == "MultiPolygon"
        assert len(geometries[0].interiors) == 1
        for geometry, each in zip(geometries, content["features"], strict=True):
            assert geometry.area == each["properties"]["pixels"]
        number = panoptic.segments == 1
        np.testing.assert_array_equal(filled(geometries[:1], HW), number)
        rings = [geometries[0].exterior, *geometries[0].interiors]
        assert [ring.is_ccw for ring in rings] == [True, False]  # RFC 7946, section 3.1.6


def check_labelme(content: dict) -> None:
    """All that labelme's own reader demands, and what its canvas needs of each kind of shape."""
    assert set(content) == {
        "version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth",
    }  # fmt: skip
    assert isinstance(content["version"], str)
    assert content["flags"] == {}
    assert content["imageData"] is None
    for shape in content["shapes"]:
        assert isinstance(shape["label"], str)
        assert shape["label"]
        assert shape["group_id"] is None or type(shape["group_id"]) is int
        assert shape["flags"] == {}
        assert shape["description"] == ""
        assert shape["mask"] is None
        assert all(len(point) == 2 and all(type(v) is float for v in point) for point in shape["points"])
        corners = {"polygon": len(shape["points"]) >= 3, "rectangle": len(shape["points"]) == 2}
        assert corners[shape["shape_type"]]
        x, y = np.array(shape["points"]).T
        assert 0 <= x.min() <= x.max() <= content["imageWidth"]
        assert 0 <= y.min() <= y.max() <= content["imageHeight"]


def test_labelme_has_all_fields_and_its_polygons_are_the_masks(panoptic: Panoptic) -> None:
    for task, result in results(panoptic).items():
        stream = io.BytesIO()
        labelme_files.write(stream, result)
        content = json.loads(stream.getvalue())
        check_labelme(content)
        assert (content["imageHeight"], content["imageWidth"]) == HW
        if task == "boxes":
            assert content["shapes"][0]["shape_type"] == "rectangle"
            continue
        cats = [each for each in content["shapes"] if each["label"] == "cat"]
        assert len({each["group_id"] for each in cats}) == 1  # one object, cut through its hole
        assert len(cats) > 1
        polygons = [shapely.Polygon(each["points"]) for each in cats]
        assert all(each.is_valid for each in polygons)
        np.testing.assert_array_equal(filled(polygons, HW), panoptic.segments == 1)


def test_nothing_found_is_an_empty_file() -> None:
    nothing = Detections.empty(NAMES, HW)
    assert list(shapes_of(nothing)) == []
    for module, key in ((labelme_files, "shapes"), (geojson_files, "features")):
        stream = io.BytesIO()
        module.write(stream, nothing)
        assert json.loads(stream.getvalue())[key] == []


def test_a_run_puts_paths_and_maps_into_the_files(tmp_path: Path) -> None:
    save(tmp_path / "photos/sub/a 猫.png")
    pixels = np.random.default_rng(0).integers(1, 255, (3, 20, 32)).astype(np.uint8)
    transform = Affine(10, 0, 500_000, 0, -10, 5_400_000)
    profile = {"driver": "GTiff", "width": 32, "height": 20, "count": 3, "dtype": "uint8"}
    with rasterio.open(
        tmp_path / "photos/map.tif", "w", crs="EPSG:32633", transform=transform, **profile
    ) as out:
        out.write(pixels)
    formats, images = ("labelme", "geojson"), find_images([tmp_path / "photos"])
    vocabulary = Vocabulary.parse("dark, middle, bright")
    folder = RunFolder(tmp_path / "out", {}, {"ovseg": "1"})
    with folder:
        run(BatchPredictor(FakeSegmenter(), vocabulary, build_writers(formats)), images, folder)
        for _ in range(2):  # the second time nothing changes
            assert write_run_files(folder, images, vocabulary, ("segment",), formats) == []
    outputs = {each["image"]: each["outputs"] for each in lines(tmp_path / "out/results.jsonl")}
    path = tmp_path / "out" / outputs["sub/a 猫.png"]["labelme"]
    content = json.loads(path.read_text("utf-8"))
    check_labelme(content)
    assert (path.parent / content["imagePath"]).resolve() == tmp_path / "photos/sub/a 猫.png"
    plain = json.loads((tmp_path / "out" / outputs["sub/a 猫.png"]["geojson"]).read_text("utf-8"))
    assert plain["ovseg"]["units"] == "pixels"
    assert "crs" not in plain
    placed = json.loads((tmp_path / "out" / outputs["map.tif"]["geojson"]).read_text("utf-8"))
    assert placed["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    geometries = [shapely.geometry.shape(each["geometry"]) for each in placed["features"]]
    assert all(each.is_valid and each.exterior.is_ccw for each in geometries)
    numbers = [each["properties"]["class_id"] for each in placed["features"]]
    pairs = list(zip(geometries, numbers, strict=True))
    drawn = rasterize(pairs, out_shape=(20, 32), transform=transform, fill=255, dtype="uint8")
    np.testing.assert_array_equal(drawn, (pixels.mean(0) * 3 / 256).astype(np.uint8))
