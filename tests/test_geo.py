"""Rasters: window by window the same as at once, on the same map, in bounded memory, resumable."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from run_helpers import VERSIONS
from scipy import ndimage

from ovseg.answers import Answers
from ovseg.batch import BatchPredictor
from ovseg.errors import ConfigError
from ovseg.geo import RasterReader, cut_tiles, is_raster, open_raster, read_georeference
from ovseg.inferencer import Inferencer
from ovseg.inputs import ImageFile
from ovseg.outputs.run_files import write_run_files
from ovseg.raster_runs import RasterOptions, run_rasters, split_rasters
from ovseg.results import Segmentation
from ovseg.run_folder import RunFolder
from ovseg.runs import RunSummary
from ovseg.text.vocabulary import Vocabulary

#: Of rasterio's own arithmetic.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")

PLACE = Affine(0.5, 0, 400_000, 0, -0.5, 5_800_000)
VOCABULARY = Vocabulary.parse("dark, middle, bright")


class Blur:
    """Labels by brightness around a pixel, up to `reach` pixels away; knows what it was asked."""

    def __init__(self, reach: int = 12) -> None:
        self.reach, self.seen = reach, []

    def answers(self, images: Iterable[Any], classes: Any, **given: Any) -> Iterator[Answers]:
        for image in images:
            self.seen.append(image)
            grey = ndimage.uniform_filter(image.mean(-1), 2 * self.reach + 1, mode="nearest")
            labels = (grey * 3 / 256).astype(np.uint8)
            yield Answers(
                labels.shape,
                classes.names,
                Segmentation(labels, classes.names, (grey / 256).astype(np.float32)),
            )


def write(path: Path, values: np.ndarray, crs: str | None = "EPSG:32633", **profile: Any) -> Path:
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype.name}
    with open_raster(path, "w", driver="GTiff", crs=crs, transform=PLACE, **shape, **profile) as out:
        out.write(values)
    return path


def smooth(hw: tuple[int, int], count: int = 3, dtype: Any = np.uint16, top: int = 3000) -> np.ndarray:
    """Patches of light and dark, never quite flat."""
    noise = np.random.default_rng(3).normal(size=(count, *hw))
    values = np.stack([ndimage.gaussian_filter(each, 9) for each in noise])
    values = (values - values.min()) / (values.max() - values.min())
    return (values * top).astype(dtype)


def go(
    paths: list[Path], out: Path, model: Any, formats: tuple[str, ...] = ("labels",), **options: Any
) -> tuple[RunSummary, RunFolder]:
    callbacks = {key: options.pop(key) for key in ("on_tile", "batch_size") if key in options}
    chosen = RasterOptions(**options)
    images = [ImageFile(path, path.name) for path in paths]
    folder = RunFolder(out, {"raster": chosen.to_dict()}, VERSIONS)
    with folder:
        summary = run_rasters(BatchPredictor(model, VOCABULARY), images, folder, formats, chosen, **callbacks)
        write_run_files(folder, images, VOCABULARY, ("segment",), formats)
    return summary, folder


def read(path: Path) -> np.ndarray:
    with open_raster(path) as dataset:
        return dataset.read(1)


@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([(64, 32), (96, 0), (128, 64), (512, 128)]))
def test_cores_cover_every_pixel_once(height: int, width: int, sizes: tuple[int, int]) -> None:
    side, overlap = sizes
    whole = -(-height // 8) * 8, -(-width // 8) * 8  # what is read ends at a multiple of 8
    visits = np.zeros(whole, int)
    for tile in cut_tiles((height, width), side, overlap):
        (top, bottom), (left, right) = tile.rows, tile.columns
        assert (bottom - top, right - left) == (min(side, whole[0]), min(side, whole[1]))
        assert top % 8 == left % 8 == 0
        part = np.zeros((bottom - top, right - left), int)
        part[tile.inner] = 1
        visits[top:bottom, left:right] += part
        for (start, end), (first, last), length in (
            (tile.rows, tile.core_rows, whole[0]),
            (tile.columns, tile.core_columns, whole[1]),
        ):
            assert first - start >= overlap // 2 or start == 0
            assert end - last >= overlap // 2 or end == length
    assert (visits[:height, :width] == 1).all()
    assert visits.sum() == height * width


def test_tiles_show_no_seams(tmp_path: Path) -> None:
    raster = write(tmp_path / "a.tif", smooth((300, 421)))
    whole, tiled, cut = Blur(), Blur(), Blur()
    go([raster], tmp_path / "whole", whole, tile=512, overlap=0)
    go([raster], tmp_path / "tiled", tiled, tile=128, overlap=32, batch_size=3)
    go([raster], tmp_path / "cut", cut, tile=128, overlap=0)
    assert len(whole.seen) == 1
    assert len(tiled.seen) == 4 * 5
    expected = read(tmp_path / "whole/labels/a.tif")
    assert len(np.unique(expected)) == 3
    np.testing.assert_array_equal(read(tmp_path / "tiled/labels/a.tif"), expected)
    assert (read(tmp_path / "cut/labels/a.tif") != expected).any()  # the overlap is what does it


@pytest.mark.usefixtures("tiny_weights")
def test_a_method_with_sliding_windows_gives_the_same_labels(tmp_path: Path) -> None:
    raster = write(tmp_path / "a.tif", smooth((320, 400), dtype=np.uint8, top=255))
    options = dict(short_side=None, crop=32, stride=16, device="cpu", keep_scores=True)
    method = Inferencer("sclip", encoder="tiny", **options)
    for blend in (True, False):
        for name, sizes in (("whole", (512, 0)), ("tiled", (256, 128))):
            out = tmp_path / f"{name}{blend}"
            go([raster], out, method, ("labels", "scores"), tile=sizes[0], overlap=sizes[1], blend=blend)
        whole, tiled = (read(tmp_path / f"{name}{blend}/labels/a.tif") for name in ("whole", "tiled"))
        assert len(np.unique(whole)) > 1
        assert (whole == tiled).mean() > 0.999  # half-precision sums may turn a tie
        whole, tiled = (read(tmp_path / f"{name}{blend}/confidence/a.tif") for name in ("whole", "tiled"))
        np.testing.assert_allclose(tiled.astype(int), whole.astype(int), atol=1)


class Moody:
    """Sure of a class in one tile and less so in the next, as a method that looks at a whole tile may be."""

    def __init__(self) -> None:
        self.calls = 0

    def answers(self, images: Iterable[Any], classes: Any, **given: Any) -> Iterator[Answers]:
        for image in images:
            sure = 0.9 if self.calls % 2 else 0.5
            self.calls += 1
            hw = image.shape[0], image.shape[1]
            scores = np.full((3, hw[0] // 8, hw[1] // 8), (1 - sure) / 2, np.float32)
            scores[1] = sure
            labels, confidence = np.ones(hw, np.uint8), np.full(hw, sure, np.float32)
            yield Answers(hw, classes.names, Segmentation(labels, classes.names, confidence, scores=scores))


def test_blending_leaves_no_jump_where_tiles_meet(tmp_path: Path) -> None:
    raster, jumps = write(tmp_path / "a.tif", smooth((250, 420))), []
    for blend in (False, True):
        out = tmp_path / str(blend)
        go([raster], out, Moody(), ("labels", "scores"), tile=128, overlap=64, blend=blend)
        assert (read(out / "labels/a.tif") == 1).all()
        sure = read(out / "confidence/a.tif").astype(int)
        assert (sure.min(), sure.max()) == pytest.approx((0.5 * 255, 0.9 * 255), abs=1.5)
        jumps.append(max(np.abs(np.diff(sure, axis=axis)).max() for axis in (0, 1)))
    assert jumps[0] >= 101
    assert jumps[1] <= 8


def test_a_threshold_holds_after_blending(tmp_path: Path) -> None:
    raster = write(tmp_path / "a.tif", smooth((250, 420)))
    go([raster], tmp_path / "out", Moody(), ("labels", "scores"), tile=128, overlap=64, threshold=0.7)
    labels, sure = (read(tmp_path / f"out/{kind}/a.tif") for kind in ("labels", "confidence"))
    assert set(np.unique(labels)) == {1, 255}
    assert (sure[labels == 1] >= 0.7 * 255 - 1).all()
    assert (sure[labels == 255] <= 0.7 * 255 + 1).all()


def test_results_lie_on_the_same_map(tmp_path: Path) -> None:
    values = smooth((100, 150), count=4)
    raster = write(tmp_path / "a.tif", values)
    summary, folder = go(
        [raster], tmp_path / "out", Blur(), ("labels", "scores", "overlay", "geojson", "html"),
        tile=64, overlap=32, bands=(4, 3, 2),
    )  # fmt: skip
    assert (summary.done, summary.failed) == (1, [])
    record = folder.records["a.tif"]
    assert record["raster"]["bands"] == [4, 3, 2]
    with rasterio.open(raster) as source, rasterio.open(tmp_path / "out/labels/a.tif") as found:
        assert (found.crs, found.transform, found.shape) == (source.crs, source.transform, source.shape)
        assert found.nodata == 255
        assert json.loads(found.tags()["ovseg"])["classes"] == ["dark", "middle", "bright"]
        labels = found.read(1)
        assert len({found.colormap(1)[index] for index in range(3)}) == 3
    counted = {each["name"]: each["pixels"] for each in record["classes"]}
    assert counted == {
        name: int((labels == k).sum()) for k, name in enumerate(VOCABULARY.names) if (labels == k).any()
    }
    with rasterio.open(tmp_path / "out/confidence/a.tif") as found:
        assert found.scales == (1 / 255,)
        assert found.transform == PLACE
        assert 0 < found.read(1).mean() < 255
    content = json.loads((tmp_path / "out/geojson/a.geojson").read_text())
    assert content["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    geometries = [shapely.geometry.shape(each["geometry"]) for each in content["features"]]
    assert all(each.is_valid for each in geometries)
    assert shapely.union_all(geometries).bounds == (400_000, 5_799_950, 400_075, 5_800_000)
    assert sum(each.area for each in geometries) == pytest.approx(100 * 150 / 4)
    assert (tmp_path / "out/overlays/a.jpg").is_file()
    assert "a.tif" in (tmp_path / "out/report.html").read_text("utf-8")
    assert not (tmp_path / "out/.rasters").exists()


def test_the_stretch_is_one_and_global(tmp_path: Path) -> None:
    values = smooth((256, 256))
    values[:, :128] += 4000  # a bright half: a stretch of each tile's own would hide it
    model = Blur()
    go([write(tmp_path / "a.tif", values)], tmp_path / "out", model, tile=128, overlap=0)
    low, high = np.percentile(values[0], (2, 98))
    expected = ((values[0].astype(float) - low) / (high - low)).clip(0, 1) * 255
    seen = np.block(
        [[model.seen[0][..., 0], model.seen[1][..., 0]], [model.seen[2][..., 0], model.seen[3][..., 0]]]
    )
    assert np.abs(seen - expected).max() <= 1


def test_blocks_that_are_read_again_are_kept(tmp_path: Path) -> None:
    raster = write(tmp_path / "a.tif", smooth((1024, 1024)), tiled=True, compress="deflate")
    with open_raster(raster) as dataset:
        reader = RasterReader(dataset)
        start = time.process_time()
        dataset.read()
        whole = time.process_time() - start
        start = time.process_time()
        reader.small(700)  # every row of it crosses four blocks: they are decoded once, not 700 times
        assert time.process_time() - start < 0.5 + 50 * whole


def test_bytes_stay_and_bands_are_found_by_their_meaning(tmp_path: Path) -> None:
    values = smooth((40, 48), count=4, dtype=np.uint8, top=200)
    path = write(tmp_path / "a.tif", values)
    with rasterio.open(path, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.undefined, ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    with open_raster(path) as dataset:
        reader = RasterReader(dataset)
        rgb, valid = reader.tile(cut_tiles(reader.hw, 64, 0)[0])
        assert valid.all()
        np.testing.assert_array_equal(rgb, values[[3, 2, 1]].transpose(1, 2, 0))
        grey, _ = RasterReader(dataset, (2,), (0.0, 100.0)).tile(cut_tiles(reader.hw, 64, 0)[0])
        assert (grey[..., 0] == grey[..., 2]).all()
        assert (grey.min(), grey.max()) == (0, 255)
        for bands in ((1, 2), (5,), (0, 1, 2)):
            with pytest.raises(ConfigError, match="one or three of 1 to 4"):
                RasterReader(dataset, bands)
    with pytest.raises(ConfigError, match="such as 512 and 128"):
        cut_tiles((100, 100), 100, 80)


def test_where_the_raster_has_no_values_there_are_no_labels(tmp_path: Path) -> None:
    values = smooth((128, 256)).astype(np.float32) + 1
    values[:, :, 100:] = np.nan
    values[:, :20] = -9999
    model = Blur()
    raster = write(tmp_path / "a.tif", values, nodata=-9999)
    _, folder = go([raster], tmp_path / "out", model, tile=64, overlap=0)
    labels = read(tmp_path / "out/labels/a.tif")
    empty = np.zeros((128, 256), bool)
    empty[:, 100:] = empty[:20] = True
    np.testing.assert_array_equal(labels == 255, empty)
    assert len(model.seen) == 4  # of 8 tiles
    assert folder.records["a.tif"]["void"]["pixels"] == empty.sum()


def test_memory_does_not_grow_with_the_raster(tmp_path: Path) -> None:
    peaks, tall = [], (1024, 4096)
    for height in tall:
        path = tmp_path / f"{height}.tif"
        with open_raster(
            path, "w", driver="GTiff", height=height, width=256, count=3, dtype="uint16", crs="EPSG:32633",
            transform=PLACE,
        ) as out:  # fmt: skip
            for top in range(0, height, 256):
                out.write(smooth((256, 256)), window=((top, top + 256), (0, 256)))
        model = Blur()
        model.seen = _Forget()
        tracemalloc.start()
        go([path], tmp_path / f"out{height}", model, ("labels", "scores"), tile=128, overlap=32)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
    assert peaks[1] < tall[1] * 256 * 3 * 2  # less than the pixels alone


class _Forget(list):
    def append(self, image: Any) -> None: ...


def test_a_stopped_run_goes_on_with_the_next_tile(tmp_path: Path) -> None:
    raster = write(tmp_path / "a.tif", smooth((200, 200)))
    first, second, whole = Blur(), Blur(), Blur()

    def stop(image: ImageFile, done: int, total: int) -> None:
        assert total == 9
        if done == 4:
            raise KeyboardInterrupt

    sizes = {"tile": 96, "overlap": 16}
    with pytest.raises(KeyboardInterrupt):
        go([raster], tmp_path / "out", first, on_tile=stop, **sizes)
    assert not (tmp_path / "out/labels").exists()
    summary, _ = go([raster], tmp_path / "out", second, **sizes)
    assert (len(first.seen), len(second.seen), summary.done) == (4, 5, 1)
    go([raster], tmp_path / "whole", whole, **sizes)
    np.testing.assert_array_equal(read(tmp_path / "out/labels/a.tif"), read(tmp_path / "whole/labels/a.tif"))
    third = Blur()
    summary, _ = go([raster], tmp_path / "out", third, **sizes)
    assert (summary.skipped, third.seen) == (1, [])


def test_a_broken_raster_does_not_end_the_run(tmp_path: Path) -> None:
    good, broken = write(tmp_path / "a.tif", smooth((64, 64))), tmp_path / "b.tif"
    broken.write_bytes(good.read_bytes()[:200])
    summary, folder = go([broken, good], tmp_path / "out", Blur(), tile=64, overlap=0)
    assert summary.done == 1
    assert [name for name, _ in summary.failed] == ["b.tif"]
    assert folder.errors["b.tif"]["stage"] == "read"


def test_rasters_are_told_from_photographs(tmp_path: Path) -> None:
    mapped = write(tmp_path / "a.tif", smooth((20, 20)))
    plain = write(tmp_path / "b.TIF", smooth((20, 20)), crs=None)
    a, b, c = (ImageFile(path, path.name) for path in (mapped, plain, tmp_path / "c.jpg"))
    assert split_rasters([c, b, a]) == ([a], [c, b])
    assert split_rasters([c, b, a], every=True) == ([b, a], [c])


def test_which_files_are_rasters(tmp_path: Path) -> None:
    mapped = write(tmp_path / "a.tif", smooth((20, 20)), crs="EPSG:4326")
    plain = write(tmp_path / "b.tif", smooth((20, 20)), crs=None)
    assert is_raster(mapped)
    assert not is_raster(plain)
    assert not is_raster(tmp_path / "c.jpg")
    assert not is_raster(tmp_path / "missing.tif")
    place = read_georeference(mapped)
    assert place is not None
    assert place.to_map(np.array([[0, 0], [2, 4]])).tolist() == [[400_000, 5_800_000], [400_001, 5_799_998]]
    assert place.crs_member() == {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
    assert read_georeference(plain) is None
