"""Tasks through what the tool builds: nothing found, absurd words, rejection, good images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import random_image

from ovseg.answers import TASKS
from ovseg.detection_results import Detections
from ovseg.errors import ConfigError
from ovseg.predictors import build_heads, build_predictor, parse_rejection, split_options
from ovseg.records import record_of

SMALL: dict[str, Any] = dict(encoder="tiny", device="cpu", short_side=64, crop=48, stride=16)
IMAGES = [random_image(70, 109), random_image(50, 60, 1)]

pytestmark = pytest.mark.usefixtures("tiny_weights")


@pytest.mark.parametrize(
    "words",
    [
        "cat",
        ", ".join(f"thing {number}" for number in range(1000)),
        "🐈, 🚲, 👩‍👩‍👧‍👦",
        "猫, 自行车, 草地",
        "a " + "very " * 200 + "long cat",
    ],
    ids=["one class", "a thousand", "emoji", "Chinese", "long"],
)
def test_absurd_vocabularies(words: str) -> None:
    predictor = build_predictor("sclip", TASKS, on_long="truncate", **SMALL)
    found = predictor.answers(IMAGES[:1], words, tasks=TASKS)
    answer = next(found)
    assert answer.segmentation.labels.shape == (70, 109)
    assert answer.detections.names == answer.names
    assert all(each.number >= 0 for each in answer.counts.classes)
    assert np.isfinite(answer.anomaly.map).all()


def test_words_too_long_for_the_model_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"tokens|context"):
        build_predictor("sclip", TASKS, **SMALL).bank("cat " * 200)


def test_a_flat_image_shows_no_things() -> None:
    flat = np.full((70, 109, 3), 127, np.uint8)
    predictor = build_predictor("sclip", ("detect",), heads={"detect.threshold": 0.999}, **SMALL)
    (answer,) = predictor.answers([flat], "cat, dog", tasks=("detect", "count", "instances"))
    assert len(answer.detections) == 0


class TestRejection:
    def test_pixels(self) -> None:
        kept, none = (
            next(build_predictor("sclip", ("segment",), reject=rule, **SMALL).answers(IMAGES[:1], "a, b"))
            for rule in ("maxlogit:-100", "maxlogit:100")
        )
        assert (kept.segmentation.labels != 255).all()
        assert (none.segmentation.labels == 255).all()

    def test_images_for_all_tasks(self) -> None:
        predictor = build_predictor("sclip", TASKS, reject_images="mcm:1.1", **SMALL)
        (answer,) = predictor.answers(IMAGES[:1], "a, b", tasks=("segment", "detect", "count", "instances"))
        assert (answer.segmentation.labels == 255).all()
        assert len(answer.detections) == answer.counts.total == 0
        assert predictor.describe()["reject"] != build_predictor("sclip", TASKS, **SMALL).describe()["reject"]

    def test_background_stays(self) -> None:
        words = {"classes": {"cat": {}, "wall": {"background": True}}}
        predictor = build_predictor("sclip", ("segment",), reject_images="mcm:1.1", **SMALL)
        labels = next(predictor.answers(IMAGES[:1], words)).segmentation.labels
        assert set(np.unique(labels)) <= {1, 255}

    @pytest.mark.parametrize("text", ["mcm:high", "mcm", "unsure:0.4"])
    def test_wrong_rules(self, text: str) -> None:
        with pytest.raises(ConfigError, match=r"RULE:THRESHOLD|threshold|Valid: atd, ctw, energy, maxlogit"):
            parse_rejection(text)


class TestOptions:
    def test_heads_take_theirs_by_task(self) -> None:
        method, of_heads = split_options({"short_side": 64, "detect.min_score": 0.3, "count.prominence": 0.1})
        assert method == {"short_side": 64}
        heads = build_heads(of_heads, threshold=0.2)
        assert heads.detect.min_score == 0.3
        assert heads.count.prominence == 0.1
        assert heads.segment.threshold == heads.detect.threshold == heads.count.threshold == 0.2

    @pytest.mark.parametrize("key", ["detect.colour", "detekt.min_score"])
    def test_unknown_ones_are_refused(self, key: str) -> None:
        with pytest.raises(ConfigError):
            build_heads({key: 1})

    def test_what_does_not_go_together(self) -> None:
        for tasks, options, message in (
            (("segment",), {"good": "x"}, "task anomaly"),
            (("anomaly",), {"good": "x", "anomaly": "words"}, "no good images"),
            (("anomaly",), {"anomaly": "wincilp"}, "Did you mean 'winclip'"),
        ):
            with pytest.raises(ConfigError, match=message):
                build_predictor("sclip", tasks, **options, **SMALL)
        with pytest.raises(ConfigError, match="--task anomaly alone"):
            build_predictor("winclip", ("segment", "anomaly"))


class TestGoodImages:
    @pytest.fixture
    def good(self, tmp_path: Path) -> Path:
        for seed in range(4):
            Image.fromarray(random_image(56, 84, seed)).save(tmp_path / f"{seed}.png")
        return tmp_path

    def test_alone_and_beside_other_tasks(self, good: Path) -> None:
        small = {"encoder": "bundled", "device": "cpu", "guide": "bundled"}
        images = [random_image(56, 84), np.full((56, 84, 3), 9, np.uint8)]
        alone = build_predictor("sclip", ("anomaly",), good=good, **small)
        scores = [each.anomaly.score for each in alone.answers(images, "object", tasks=("anomaly",))]
        assert scores[0] < scores[1], "the first is one of the good images"
        both = build_predictor(
            "proxyclip", ("segment", "anomaly"), good=good, **small, short_side=64, crop=48, stride=16
        )
        found = list(both.answers(images, "cat, dog", tasks=("segment", "anomaly")))
        assert [each.anomaly.score for each in found] == pytest.approx(scores, abs=1e-5)
        assert found[0].segmentation.names == ("cat", "dog")
        assert found[1].anomaly.threshold is not None
        assert both.describe()["anomaly"]["good"]["good_images"] == 4


class TestObjects:
    def test_each_image_has_scenes_of_its_own(self) -> None:
        predictor = build_predictor("sclip", ("detect", "count"), scenes=3, **SMALL)
        plain = build_predictor("sclip", ("detect", "count"), **SMALL)
        images = [random_image(70, 109, seed) for seed in range(3)]
        words = [f"thing {number}" for number in range(9)]
        tasks = ("detect", "count")
        together = list(predictor.answers(images, words, tasks=tasks, batch_size=3))
        alone = [next(predictor.answers([image], words, tasks=tasks)) for image in images]
        assert [record_of(each) for each in together] == [record_of(each) for each in alone]
        without = list(plain.answers(images, words, tasks=tasks))
        assert [record_of(each) for each in together] != [record_of(each) for each in without]
        assert predictor.describe()["scenes"] == 3
        with pytest.raises(ConfigError, match="0 or more"):
            build_predictor("sclip", ("detect",), scenes=-1, **SMALL)

    def test_proposals_keep_their_outlines(self) -> None:
        with pytest.raises(ConfigError, match="outlines of their own"):
            build_predictor("sclip", ("detect",), outlines=True, proposals=lambda *_: None, **SMALL)

    def test_attributes_of_every_box(self) -> None:
        predictor = build_predictor("sclip", ("detect",), attributes="red, wooden, small", **SMALL)
        many = [*(f"thing {number}" for number in range(40)), {"name": "wall", "background": True}]
        (answer,) = predictor.answers(IMAGES[:1], many, tasks=("detect",))
        found = answer.detections
        assert len(found)
        assert found.attribute_names == ("red", "wooden", "small")
        assert found.attributes.shape == (len(found), 3)
        assert ((found.attributes > 0) & (found.attributes < 1)).all()
        first = record_of(answer)["detections"][0]["attributes"]
        assert list(first) == ["red", "wooden", "small"]
        assert predictor.describe()["attributes"]["classes"][0]["name"] == "red"

    def test_a_phrase_means_one_region(self) -> None:
        def halves(image: np.ndarray, path: str | None) -> Detections:
            height, width = image.shape[:2]
            boxes = [[0, 0, width // 2, height], [width // 2, 0, width, height], [0, 0, width, height // 3]]
            ones = np.ones(3, np.float32)
            return Detections(
                np.array(boxes, np.float32), np.zeros(3, np.int64), ones, ("region",), (height, width)
            )

        options = {"proposals": halves, "refer": True}
        predictor = build_predictor("sclip", ("detect",), **options, **SMALL)
        (answer,) = predictor.answers(IMAGES[:1], "the dog on the left, a red car", tasks=("detect",))
        assert answer.detections.labels.tolist() == [0, 1]
        assert answer.detections.names == ("the dog on the left", "a red car")
        assert predictor.describe()["region_route"]["refer"] is True
        with pytest.raises(ConfigError, match="--proposals"):
            build_predictor("sclip", ("detect",), refer=True, **SMALL)
