"""Encode once, ask many things; and what is drawn, explained and written of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from ovseg.demo import drawing
from ovseg.demo.catalogue import check_present, encoders, methods, options_for
from ovseg.demo.engine import Engine, Picture
from ovseg.demo.examples import read_examples
from ovseg.demo.explain import explain, heat_picture
from ovseg.demo.files import FOLDERS_KEPT, write_files
from ovseg.demo.principal import principal_pictures
from ovseg.demo.settings import Settings
from ovseg.errors import CheckpointError, ConfigError, ImageError, ShapeError, VocabularyError
from ovseg.images import read_image
from ovseg.inferencer import Inferencer
from ovseg.outputs.label_files import read_labels
from ovseg.structures import TextBank
from ovseg.text.states import anomaly_bank

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
DEMO = Path(__file__).parents[2] / "demo"
WORDS = Settings(words="bear, orange, laptop, grass", method="maskclip")


def test_the_answer_is_that_of_the_core(engine: Engine, picnic: Picture) -> None:
    core = Inferencer("maskclip", encoder="bundled", **options_for("maskclip", "bundled"))
    [expected] = core([read_image(DEMO / "images/picnic.jpg")], WORDS.words)
    found = engine.ask(picnic, WORDS, "segment").answers.of("segment")
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_other_words_thresholds_and_tasks_reuse_the_features(
    engine: Engine, picnic: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = engine.ask(picnic, WORDS, "segment", size_hw=picnic.shown_hw).answers.of("segment")
    model = engine.model("maskclip", "bundled")

    def encode(*args: object) -> None:
        raise AssertionError("the image was encoded again")

    monkeypatch.setattr(model.inferencer, "encode", encode)
    other = engine.ask(picnic, replace(WORDS, words="grass, boat"), "segment", size_hw=picnic.shown_hw)
    assert other.encode_s == 0
    assert other.answers.names == ("grass", "boat")
    sure = engine.ask(picnic, replace(WORDS, threshold=0.9999), "segment", size_hw=picnic.shown_hw)
    voids = (sure.answers.of("segment").labels == 255).sum()
    assert voids > (first.labels == 255).sum()
    assert first.image_hw == picnic.shown_hw == (549, 720)
    for task in ("detect", "count", "anomaly"):
        assert engine.ask(picnic, WORDS, task).answers.of(task) is not None
    again = engine.ask(picnic, replace(WORDS, opacity=0.1), "segment", size_hw=picnic.shown_hw)
    assert again.answers.of("segment") is first  # an opacity asks nothing


def test_the_states_of_things_are_encoded_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def bank(encoder: Any, names: tuple[str, ...], **given: Any) -> TextBank:
        seen.extend(names)
        return anomaly_bank(encoder, names, **given)

    monkeypatch.setattr("ovseg.demo.engine.anomaly_bank", bank)
    model = engine.model("maskclip", "bundled")

    def states(words: str, background: str = "") -> TextBank:
        found = engine.words(model, Settings(words=words, background=background), "anomaly").states
        assert found is not None
        return found

    states("cork, wheel", "wall")
    both = states("wheel, lamp")
    assert seen == ["cork", "wheel", "lamp"]
    expected = anomaly_bank(model.inferencer.text_encoder, ("wheel", "lamp"))
    torch.testing.assert_close(both.embeddings, expected.embeddings)
    assert both.class_of_query.tolist() == expected.class_of_query.tolist()
    assert both.names == expected.names
    with pytest.raises(VocabularyError, match="at least one object"):
        states("background")


def test_large_images_are_scaled_down_or_refused(engine: Engine, tmp_path: Path) -> None:
    Image.new("RGB", (1200, 600), (10, 200, 30)).save(tmp_path / "wide.png")
    wide = engine.read(tmp_path / "wide.png")
    assert wide.given_hw == (600, 1200)
    assert wide.hw == (200, 400)
    assert tuple(wide.pixels[0, 0]) == (10, 200, 30)
    Image.new("RGB", (2000, 600)).save(tmp_path / "larger.png")
    with pytest.raises(ImageError, match=r"^larger.png: image is 600x2000 .* more than the limit"):
        engine.read(tmp_path / "larger.png")


def test_damaged_files_are_named_without_their_folder(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0garbage")
    with pytest.raises(ImageError) as caught:
        engine.read(tmp_path / "bad.jpg")
    assert str(caught.value).startswith("bad.jpg: damaged JPEG")
    assert str(tmp_path) not in str(caught.value)


def test_good_images_judge_another(engine: Engine, picnic: Picture) -> None:
    good = [engine.read(DEMO / f"images/{name}.jpg") for name in ("farm", "beach")]
    found = engine.compare_with_good(picnic, good, "bundled")
    assert found.threshold is not None
    assert found.image_hw == picnic.hw
    with pytest.raises(ConfigError, match="up to 16"):
        engine.compare_with_good(picnic, good * 9, "bundled")


def test_a_spot_has_the_scores_of_the_map_and_is_alike_to_itself(engine: Engine, picnic: Picture) -> None:
    settings = replace(WORDS, method="proxyclip")
    answer = engine.ask(picnic, settings, "segment", size_hw=picnic.shown_hw).answers.of("segment")
    x, y = 450, 200  # the bear
    spot = explain(engine, picnic, settings, "segment", (x, y))
    assert spot.names[0] == answer.names[answer.labels[y, x]] == "bear"
    assert spot.probabilities[0] == pytest.approx(answer.confidence[y, x], abs=1e-5)
    assert sum(spot.probabilities) == pytest.approx(1, abs=1e-5)
    features, affinity = spot.alike.values()
    assert features[y, x] == pytest.approx(features.max(), abs=0.05)
    laptop = answer.labels == answer.names.index("laptop")
    assert features[answer.labels == 0].mean() > features[laptop].mean() + 0.2
    assert affinity[y, x] > 4 * affinity[laptop].mean()
    assert heat_picture(picnic.shown, features, (x, y)).size == (720, 549)
    with pytest.raises(ShapeError, match="outside"):
        explain(engine, picnic, settings, "segment", (720, 0))


def test_only_correlations_have_an_affinity_row(engine: Engine, picnic: Picture) -> None:
    assert len(explain(engine, picnic, WORDS, "segment", (5, 5)).alike) == 1  # MaskCLIP mixes nothing


def test_the_same_features_have_the_same_colours(engine: Engine, picnic: Picture) -> None:
    features, _, _ = engine.encoded(picnic, "maskclip", "bundled")
    first, second = principal_pictures([features, features], (30, 40))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (30, 40, 3)
    assert first.reshape(-1, 3).std(axis=0).min() > 10
    flat = replace(features, grid=torch.ones_like(features.grid))
    assert np.isfinite(principal_pictures([flat], (8, 9))[0]).all()
    with pytest.raises(ShapeError, match="one encoder"):
        principal_pictures([features, replace(features, grid=features.grid[:, :5], image=None)], (8, 9))


def test_files_open_in_other_tools(engine: Engine, picnic: Picture, tmp_path: Path) -> None:
    answers = engine.ask(picnic, WORDS, "segment", scores=True).answers
    files = {each.name: each for each in write_files(tmp_path, picnic, answers, "segment", WORDS)}
    assert set(files) == {
        "picnic_labels.png", "picnic_overlay.jpg", "picnic_scores.npz", "picnic_coco.json",
        "picnic_segment.json",
    }  # fmt: skip
    labels, names, _ = read_labels(files["picnic_labels.png"])
    np.testing.assert_array_equal(labels, answers.of("segment").labels)
    assert names == ["bear", "orange", "laptop", "grass"]
    coco = COCO(files["picnic_coco.json"])
    mask = coco.annToMask(coco.loadAnns(coco.getAnnIds(catIds=[1]))[0])
    np.testing.assert_array_equal(mask, labels == 0)
    with np.load(files["picnic_scores.npz"]) as scores:
        np.testing.assert_allclose(scores["scores"].sum(axis=0), 1, atol=0.01)
    assert json.loads(files["picnic_segment.json"].read_text())["shares"]["grass"] > 0.4
    for number in range(FOLDERS_KEPT + 3):
        (tmp_path / f"old{number}").mkdir()
    write_files(tmp_path, picnic, answers, "segment", replace(WORDS, opacity=0.9))
    assert len(list(tmp_path.iterdir())) == FOLDERS_KEPT


@pytest.mark.parametrize("task", ["detect", "count", "anomaly"])
def test_every_task_has_files_and_a_picture(
    engine: Engine, picnic: Picture, tmp_path: Path, task: str
) -> None:
    settings = replace(WORDS, words="bear, orange", tab=task)
    answers = engine.ask(picnic, settings, task).answers
    suffixes = {each.suffix for each in write_files(tmp_path, picnic, answers, task, settings)}
    assert {".json", ".jpg"} <= suffixes
    assert drawing.picture_of(picnic.pixels, answers, task, settings).size == (336, 256)
    assert drawing.legend_of(answers, task, settings)


def test_names_are_text_in_the_page(engine: Engine, picnic: Picture) -> None:
    settings = replace(WORDS, words="<script>alert(1)</script>, grass")
    answers = engine.ask(picnic, settings, "segment").answers
    spot = explain(engine, picnic, settings, "segment", (10, 10))
    for text in (
        drawing.legend_of(answers, "segment", replace(settings, threshold=0.0)),
        drawing.bars_of(spot),
        drawing.problem_of("<b onclick=x>"),
    ):
        assert "<script" not in text
        assert "<b onclick" not in text


def test_the_lists_name_what_is_here_first_and_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovseg.encoders.hub.find_cached", lambda *args: None)
    monkeypatch.setattr("ovseg.demo.catalogue.find_cached", lambda *args: None)
    listed = encoders()
    assert listed[0].name == "bundled"
    assert [bool(each.missing) for each in listed] == [False] + [True] * (len(listed) - 1)
    assert not any(each.missing for each in methods("bundled"))
    real = {each.name: each for each in methods("clip_vitb16_openai")}
    assert real["trident"].missing == ("dino_vitb16", "sam_vitb")
    assert not real["sclip"].missing
    with pytest.raises(CheckpointError, match=r"dino_vitb16.*hf download timm/"):
        check_present("trident", "clip_vitb16_openai")
    with pytest.raises(ConfigError, match="Did you mean 'trident'"):
        check_present("tridnt", "bundled")


def test_examples_are_there(tmp_path: Path) -> None:
    examples = read_examples(DEMO / "examples.json")
    assert len(examples) == 12
    for each in examples:
        assert Settings(words=each.words, background=each.background, tab=each.tab).vocabulary()
    (tmp_path / "x.json").write_text('[{"image": "none.jpg", "words": "cat"}]')
    with pytest.raises(ConfigError, match=r"none\.jpg"):
        read_examples(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ConfigError, match="JSON list"):
        read_examples(tmp_path / "x.json")
