"""Engines: the same results as a plain run, with the bundled model, on two local workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_helpers import FakeSegmenter, contents, lines, poison
from support import load_tool

from ovseg.batch import BatchPredictor
from ovseg.engines import make_predict_batch
from ovseg.errors import ConfigError, ShapeError
from ovseg.outputs.writers import build_writers

ROOT = Path(__file__).parents[1]
CONFIG = dict(method="maskclip", classes="cat, grass, sky", encoder="bundled", device="cpu", short_side=64)


class TestBatches:
    @pytest.fixture
    def predict(self) -> BatchPredictor:
        return BatchPredictor(FakeSegmenter(), None, build_writers(["labels", "coco"]))

    def test_columns_in_columns_out(self, predict: BatchPredictor, photos: Path) -> None:
        poison(photos / "bad.png")
        (photos / "none.png").write_bytes(b"")
        paths = sorted(str(each) for each in photos.glob("*.png"))
        found = predict({"path": np.array(paths), "key": np.arange(len(paths))})
        assert sorted(found) == ["coco", "error", "key", "labels", "path", "record"]
        assert found["key"].tolist() == list(range(6))
        failed = {Path(path).name: error for path, error in zip(paths, found["error"], strict=True) if error}
        assert failed["none.png"] == "the file is empty (0 bytes)" or "empty" in failed["none.png"]
        assert "out of memory" in failed["bad.png"]
        assert [bool(each) for each in found["labels"]] == [not error for error in found["error"]]
        assert json.loads(found["record"][1])["classes"]

    def test_bytes_and_pixels_are_the_same(self, predict: BatchPredictor, photos: Path) -> None:
        path = photos / "im0.png"
        by_path, by_bytes, by_pixels = (
            predict({"path": [str(path)]}),
            predict({"bytes": [path.read_bytes()]}),
            predict({"pixels": [np.array(Image.open(path))]}),
        )
        assert by_path["labels"][0] == by_bytes["labels"][0] == by_pixels["labels"][0]

    def test_a_batch_without_images(self, predict: BatchPredictor) -> None:
        with pytest.raises(ShapeError, match="pixels or path or bytes"):
            predict({"image": [1]})
        assert predict({"path": []})["record"].shape == (0,)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "a.jpg", "sub/b 猫.png", "c.png")):
        pixels = np.random.default_rng(number).integers(0, 255, (40 + 8 * number, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def plain(pictures: Path, out: Path) -> None:
    given = ["-c", CONFIG["classes"], "--method", "maskclip", "--encoder", "bundled", "--device", "cpu", "-q"]
    options = ["--opts", "short_side=64", "--formats", "labels,coco"]
    load_tool(ROOT / "tools" / "infer.py").main([str(pictures), *given, *options, "-o", str(out)])


def test_a_worker_is_made_of_plain_values() -> None:
    assert json.loads(json.dumps(CONFIG)) == CONFIG
    with pytest.raises(ConfigError):
        make_predict_batch(**(CONFIG | {"method": "maskclop"}))


@pytest.mark.timeout(280)
def test_ray_writes_what_a_plain_run_writes(pictures: Path, tmp_path: Path) -> None:
    """In a process of its own: Ray talks over sockets, which this suite forbids."""
    pytest.importorskip("ray")
    from pyarrow import parquet

    (pictures / "broken.png").write_bytes(b"no image")
    out = tmp_path / "ray"
    command = [
        *(sys.executable, "tools/infer_ray.py", pictures, "-c", CONFIG["classes"], "--method", "maskclip"),
        *("--encoder", "bundled", "--device", "cpu", "--opts", "short_side=64", "--formats", "labels,coco"),
        *("-o", out, "--workers", "2", "--batch-size", "2"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    first = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 1, first.stderr
    assert "broken.png" in first.stderr
    plain(pictures, tmp_path / "plain")
    made = {name: each for name, each in contents(out).items() if name.startswith(("labels/", "coco/"))}
    expected = {
        name: each
        for name, each in contents(tmp_path / "plain").items()
        if name.startswith(("labels/", "coco/"))
    }
    assert made == expected
    rows = {row["image"]: row for row in parquet.read_table(out / "rows").to_pylist()}
    assert len(rows) == 5
    for record in lines(tmp_path / "plain/results.jsonl"):
        assert json.loads(rows[record["image"]]["record"])["classes"] == record["classes"]

    Image.new("RGB", (64, 40)).save(pictures / "broken.png")
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "1 of 5 images, 4 done earlier" in again.stdout


def test_rows_of_a_killed_run_are_found_again(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from ovseg.engines.ray import _write_rows, done_rows

    row = {"image": "a.png", "error": "", "record": "{}", "outputs": "{}"}
    _write_rows(tmp_path, [row])
    (tmp_path / "rows" / "rows-000007.parquet").write_bytes(b"PAR1 torn")
    assert done_rows(tmp_path) == {"a.png": row}
    assert len(list((tmp_path / "rows").glob("*.parquet"))) == 1
