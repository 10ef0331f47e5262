"""AnomalyInferencer: every method behind one handle, good images, thresholds, windows, messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import random_image, tiny_clip, tiny_part

from ovseg.anomaly_build import ANOMALY_METHODS, build_anomaly_inferencer, given_threshold, options_of
from ovseg.anomaly_inferencer import AnomalyInferencer, good_images
from ovseg.anomaly_results import AnomalyThreshold
from ovseg.answers import Answers
from ovseg.errors import CheckpointError, ConfigError
from ovseg.methods.anomalyclip import ObjectPrompts
from ovseg.parts import LOADERS
from ovseg.text.states import STATE_PROMPTS, StatePrompts, anomaly_bank

SHORT = {"normal": ("{}",), "abnormal": ("damaged {}",), "templates": ("a {}",)}
#: What each method is given here beside its name.
GIVEN: dict[str, dict[str, Any]] = {
    "winclip": {"prompts": SHORT, "size": 64},
    "anovl": {"prompts": SHORT, "size": 64, "with_copies": False},
    "anomalyclip": {"prompts": SHORT, "size": 64, "smooth_std_px": 1.0},
    "patch-memory": {"short_side": 64, "encoder": "bundled"},
}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovseg.anomaly_build.load_clip", lambda *_, **__: tiny_clip())
    monkeypatch.setitem(LOADERS, "guide", lambda name: tiny_part("guide"))


def built(method: str, **options: Any) -> AnomalyInferencer:
    return build_anomaly_inferencer(method, device="cpu", **(GIVEN[method] | options))


def pictures() -> list[np.ndarray]:
    return [random_image(70, 90, 1), random_image(64, 96, 2), random_image(70, 90, 3)]


def good() -> list[np.ndarray]:
    return [random_image(70, 90, seed) for seed in (11, 12, 13)]


@pytest.mark.parametrize("method", ANOMALY_METHODS)
def test_answers(method: str) -> None:
    inferencer = built(method, good=good())
    answers = list(inferencer.answers(pictures(), "metal nut", batch_size=3))
    assert [each.image_hw for each in answers] == [(70, 90), (64, 96), (70, 90)]
    for answer, image in zip(answers, pictures(), strict=True):
        assert isinstance(answer, Answers)
        assert answer.names == ("metal nut",)
        assert answer.anomaly is not None
        assert answer.anomaly.map.shape == image.shape[:2]
        assert np.isfinite(answer.anomaly.map).all()
        assert answer.anomaly.map.std() > 0
        assert answer.anomaly.label is not None  # good images gave a threshold
        # alone as in a batch
        (alone,) = inferencer([image], "metal nut")
        np.testing.assert_allclose(alone.map, answer.anomaly.map, atol=2e-5)
        assert alone.score == pytest.approx(answer.anomaly.score, abs=2e-5)
    described = json.loads(json.dumps(inferencer.describe()))
    assert described["method"] == method
    assert described["good"]["good_images"] == 3
    assert "3 good images" in described["threshold"]["how"]


@pytest.mark.parametrize("method", ["winclip", "patch-memory"])
def test_good_images_are_learned(method: str) -> None:
    known = random_image(70, 90, 11)
    inferencer = built(method, good=[known])
    seen, unseen = inferencer([known, random_image(70, 90, 40)], "object")
    assert seen.threshold is None  # one image cannot be scored by others
    assert seen.score < unseen.score - 1e-3
    if method == "patch-memory":
        assert seen.map.max() < 1e-5
        assert unseen.map.max() > 0.01


@pytest.mark.parametrize("method", ["winclip", "patch-memory"])
def test_thresholds_are_of_held_out_images(method: str) -> None:
    """An image in the memory scores nothing; a threshold from that would call everything anomalous."""
    inferencer = built(method, good=good(), quantile=1.0)
    threshold = inferencer.head.threshold
    assert threshold is not None
    one_left_out = []
    for index, image in enumerate(good()):
        others = [each for place, each in enumerate(good()) if place != index]
        one_left_out += [each.score for each in built(method, good=others)([image], "object")]
    assert threshold.image == pytest.approx(max(one_left_out), abs=1e-5)
    assert not any(each.label for each in inferencer(good(), "object"))


@pytest.mark.parametrize("method", ["anovl", "anomalyclip"])
def test_good_images_of_word_methods_give_a_threshold_only(method: str) -> None:
    with_good, without = built(method, good=good()), built(method)
    for one, other in zip(with_good(pictures()), without(pictures()), strict=True):
        np.testing.assert_array_equal(one.map, other.map)
        assert one.label is not None
        assert other.label is None


def test_words_matter() -> None:
    inferencer = built("winclip", prompts="winclip")
    nut, bottle = (next(inferencer(pictures()[:1], name)) for name in ("metal nut", "bottle"))
    assert abs(nut.score - bottle.score) > 1e-6
    by_name = {"*": SHORT, "carpet": StatePrompts(("soft {}",), ("torn {}",), ("a {}",))}
    inferencer = built("winclip", prompts=by_name)
    carpet = inferencer.states("carpet")
    other = built("winclip").states("carpet")
    assert carpet is not None
    assert other is not None
    assert not torch.allclose(carpet.states, other.states)
    np.testing.assert_allclose(inferencer.states("bottle").states, built("winclip").states("bottle").states)


def test_windows_are_at_native_resolution() -> None:
    image = random_image(128, 192, 5)
    inferencer = built("winclip", crop=64, stride=64)
    (whole,) = inferencer([image])
    assert whole.map.shape == (128, 192)
    # windows that do not overlap: each is what the method says of that window alone
    pieces = built("winclip", crop=64, stride=64)
    scores = []
    for top in (0, 64):
        for left in (0, 64, 128):
            (piece,) = pieces([image[top : top + 64, left : left + 64]])
            np.testing.assert_allclose(whole.map[top : top + 64, left : left + 64], piece.map, atol=1e-5)
            scores.append(piece.score)
    assert whole.score == pytest.approx(max(scores), abs=1e-6)
    # smaller than a window: enlarged to it
    assert next(inferencer([random_image(40, 50)])).map.shape == (40, 50)
    few = built("winclip", crop=64, good=[image])
    assert next(few([image])).score < next(built("winclip", crop=64)([image])).score


def test_folder_of_good_images(tmp_path: Path) -> None:
    for index, image in enumerate(good()):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    from_folder, from_arrays = built("patch-memory", good=tmp_path), built("patch-memory", good=good())
    assert from_folder.describe()["good"] == from_arrays.describe()["good"]
    assert from_folder.head.threshold == from_arrays.head.threshold
    assert [Path(each).name for each in good_images(tmp_path, 2)] == ["0.png", "2.png"]
    assert built("patch-memory", good=tmp_path, shots=2).describe()["good"]["good_images"] == 2


def test_memory_is_saved_and_read(tmp_path: Path) -> None:
    inferencer = built("patch-memory", good=good())
    inferencer.save(tmp_path / "memory.safetensors")
    again = built("patch-memory", good=tmp_path / "memory.safetensors", threshold=0.5)
    for one, other in zip(inferencer(pictures()), again(pictures()), strict=True):
        np.testing.assert_allclose(one.map, other.map, atol=2e-3)  # kept as float16
    assert next(again(pictures())).threshold == given_threshold(0.5)
    with pytest.raises(CheckpointError, match="short_side"):
        built("patch-memory", good=tmp_path / "memory.safetensors", short_side=72)
    with pytest.raises(ConfigError, match="only patch-memory"):
        built("winclip", good=tmp_path / "memory.safetensors")


def test_thresholds_are_given(tmp_path: Path) -> None:
    span = (0.0, 1.0)
    threshold = AnomalyThreshold(0.25, 0.5, span, span, "by hand")
    threshold.save(tmp_path / "threshold.json")
    for given in (threshold, tmp_path / "threshold.json", str(tmp_path / "threshold.json")):
        assert built("winclip", threshold=given).head.threshold == threshold
    number = built("winclip", threshold="0.3", good=good()).head.threshold
    assert number is not None
    assert (number.image, number.pixel, number.how) == (0.3, 0.3, "given")


def test_learned_prompts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    prompts = ObjectPrompts(32, length=4, deep_blocks=1, deep_length=2)
    torch.save({"prompt_learner": prompts.state_dict()}, tmp_path / "prompts.pth")
    from_file = built("anomalyclip", prompts=str(tmp_path / "prompts.pth"))
    given = built("anomalyclip", prompts=prompts)
    for one, other in zip(from_file(pictures()), given(pictures(), "bottle"), strict=True):
        np.testing.assert_array_equal(one.map, other.map)  # the same for any object
    assert from_file.describe()["prompts"]["*"]["type"] == "ObjectPrompts"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("winclip", {"prompts": "winclpi"}, "winclpi.*Did you mean 'winclip'"),
        ("winclip", {"scales": (2, 3)}, "unknown option of anomaly method 'winclip' 'scales'"),
        ("winclip", {"short_side": 64}, "goes with windows"),
        ("winclip", {"guide": "dino_vits8"}, "asks no guide"),
        ("winclip", {"good": []}, "no good images"),
        ("winclip", {"threshold": "nowhere.json"}, "nowhere.json"),
        ("anomalyclip", {"prompts": None}, "learned prompts"),
        ("anomalyclip", {"prompts": "nowhere.pth"}, "no learned prompts at 'nowhere.pth'"),
        ("patch-memory", {"prompts": "winclip"}, "no use for prompts"),
        ("patch-memory", {"good": [np.zeros((64, 64, 3), np.uint8)] * 2, "quantile": 2.0}, "image_quantile"),
    ],
)
def test_mistakes(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(method, **options)


def test_mistakes_when_asked() -> None:
    with pytest.raises(ConfigError, match="good images"):
        built("patch-memory").answers(pictures())
    with pytest.raises(ConfigError, match="'anomaly' only"):
        built("winclip").answers(pictures(), tasks=("segment", "anomaly"))
    with pytest.raises(ConfigError, match="the one thing"):
        built("winclip").answers(pictures(), "bottle, cup")
    with pytest.raises(ConfigError, match="unknown anomaly method 'winclp'"):
        build_anomaly_inferencer("winclp")


def test_flat_images() -> None:
    flat = np.full((64, 80, 3), 128, np.uint8)
    for method in ANOMALY_METHODS:
        (result,) = built(method, good=[flat, random_image(64, 80)])([flat])
        assert np.isfinite(result.map).all()


def test_options_are_published() -> None:
    assert options_of("winclip")["size"] == options_of("anovl")["size"] == 240
    assert options_of("anomalyclip")["size"] == 518
    assert options_of("patch-memory")["short_side"] == 448
    assert "windows" not in options_of("patch-memory")
    sides = {
        encoder: build_anomaly_inferencer(
            "winclip", encoder=encoder, prompts=SHORT, device="cpu"
        ).detector.size
        for encoder in ("clip_vitb16_openai", "bundled")
    }
    assert sides == {"clip_vitb16_openai": 240, "bundled": 160}


def test_anomaly_bank() -> None:
    encoder = built("winclip").words.args[0]  # type: ignore[union-attr]
    bank = anomaly_bank(encoder, ["cup", "bottle"], StatePrompts(**SHORT))
    assert bank.names == ("normal", "abnormal")
    assert bank.class_of_query.tolist() == [0, 1, 0, 1]
    assert bank.embeddings.norm(dim=1) == pytest.approx(1.0)
    assert set(STATE_PROMPTS) >= {"winclip", "anovl", "generic"}
