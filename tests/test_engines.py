"""What engines call: columns in, columns out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_helpers import FakeSegmenter, poison

from ovseg.batch import BatchPredictor
from ovseg.engines import make_predict_batch
from ovseg.errors import ConfigError, ShapeError
from ovseg.outputs.writers import build_writers

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
        with pytest.raises(ShapeError, match="pixels or bytes or path"):
            predict({"image": [1]})
        assert predict({"path": []})["record"].shape == (0,)


def test_a_worker_is_made_of_plain_values() -> None:
    assert json.loads(json.dumps(CONFIG)) == CONFIG
    with pytest.raises(ConfigError):
        make_predict_batch(**(CONFIG | {"method": "maskclop"}))
