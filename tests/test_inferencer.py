from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import random_image, tiny_part

from ovseg.devices import resolve_device, resolve_dtype
from ovseg.errors import ConfigError, ImageError, ShapeError, VocabularyError
from ovseg.inferencer import Inferencer
from ovseg.methods import METHODS
from ovseg.parts import LOADERS

SMALL = dict(encoder="tiny", device="cpu", short_side=64, crop=48, stride=16)
WHOLE = dict(encoder="tiny", device="cpu", short_side=64)
CLASSES = "cat = kitten | tabby, dog, sofa, grass"

pytestmark = pytest.mark.usefixtures("tiny_weights")


def test_results_are_lazy_and_in_order() -> None:
    taken = []

    def images():
        for seed, hw in enumerate([(70, 109), (50, 60), (70, 109), (41, 90)]):
            taken.append(seed)
            yield random_image(*hw, seed)

    results = Inferencer("sclip", **SMALL)(images(), CLASSES, batch_size=2)
    assert taken == []
    first = next(results)
    assert taken == [0, 1]
    assert [first.image_hw, *(r.image_hw for r in results)] == [(70, 109), (50, 60), (70, 109), (41, 90)]
    assert first.names == ("cat", "dog", "sofa", "grass")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_mixed_batches_equal_one_by_one(method: str) -> None:
    images = [random_image(*hw, seed) for seed, hw in enumerate([(70, 109), (50, 60), (70, 109), (37, 200)])]
    inferencer = Inferencer(method, **SMALL)
    singles = list(inferencer(images, CLASSES, batch_size=1))
    for batch_size in (3, 4):
        for single, batched in zip(singles, inferencer(images, CLASSES, batch_size=batch_size), strict=True):
            np.testing.assert_allclose(batched.confidence, single.confidence, atol=1e-5)
            assert (batched.labels == single.labels).mean() > 0.9999
    assert len({single.confidence.tobytes() for single in singles}) == 4


def test_synonyms_are_one_class() -> None:
    inferencer = Inferencer("clip", **SMALL)
    vocabulary, bank = inferencer.bank(CLASSES)
    assert bank.class_of_query.tolist() == [0, 0, 0, 1, 2, 3]
    assert vocabulary.names == bank.names
    assert inferencer.bank(CLASSES)[1] is bank


def test_classes_are_checked_at_the_call() -> None:
    inferencer = Inferencer("clip", **SMALL)
    with pytest.raises(VocabularyError):
        inferencer([], "cat, cat")
    with pytest.raises(VocabularyError):
        inferencer([], "")
    with pytest.raises(ConfigError, match="at least 1"):
        inferencer([], "cat", batch_size=0)


def test_anything_that_is_an_image_is_taken(tmp_path: Path) -> None:
    image = random_image(50, 60)
    Image.fromarray(image).save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    results = list(
        Inferencer("clip", **SMALL)([image, path, str(path), Image.open(path), path.read_bytes()], "a, b")
    )
    assert all(np.array_equal(result.labels, results[0].labels) for result in results)


def test_what_is_no_image_is_refused_in_its_turn(tmp_path: Path) -> None:
    (tmp_path / "note.jpg").write_text("no image")
    results = Inferencer("clip", **SMALL)([random_image(50, 60), tmp_path / "note.jpg"], "cat")
    next(results)
    with pytest.raises(ImageError, match=r"note\.jpg"):
        next(results)


def test_description_is_json_and_names_what_changes_results() -> None:
    one = Inferencer("sclip", **SMALL).describe()
    assert json.loads(json.dumps(one)) == one
    assert one["method"] == "sclip"
    assert one["options"]["stride"] == 16
    assert one["options"]["temperature"] == 40
    assert one["weights_sha256"] == "0" * 64
    other = Inferencer("sclip", **(SMALL | {"stride": 12}), threshold=0.2).describe()
    assert other != one


def test_bf16_agrees_with_float32() -> None:
    image = random_image(70, 109)
    full = next(Inferencer("sclip", **SMALL)([image], CLASSES))
    half = next(Inferencer("sclip", **SMALL, dtype="bf16")([image], CLASSES))
    assert half.confidence.dtype == np.float32
    assert (half.labels == full.labels).mean() > 0.9


def test_names_are_checked_before_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("ovseg.inferencer.load_clip", fail)
    for arguments, options, message in (
        (("maskclp",), {}, "Did you mean 'maskclip'"),
        (("clip",), {"strid": 3}, "Did you mean 'stride'"),
        (("clip",), {"device": "gpu"}, "unknown device"),
        (("clip",), {"dtype": "int8"}, "unknown dtype"),
        (("clip",), {"dtype": "fp16", "device": "cpu"}, "bf16"),
        (("clip",), {"threshold": 2.0}, "between 0 and 1"),
        (("clip",), {"weights": "some.safetensors"}, "need an encoder"),
    ):
        with pytest.raises(ConfigError, match=message):
            Inferencer(*arguments, **options)


def test_devices_and_dtypes() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_dtype("fp16", torch.device("cuda")) == torch.float16
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="CUDA"):
            resolve_device("cuda")


class TestParts:
    def test_published_names_are_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = {}
        for part in LOADERS:
            monkeypatch.setitem(
                LOADERS, part, lambda name, part=part: asked.setdefault(part, name) and tiny_part(part)
            )
        described = Inferencer("corrclip", **SMALL).describe()
        assert asked == {"guide": "dino_vitb8", "sam": "sam_vitb"}
        assert described["parts"]["guide"]["name"] == "dino_vitb8"

    def test_the_bundled_encoder_takes_bundled_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = {}
        monkeypatch.setitem(
            LOADERS, "guide", lambda name: asked.setdefault("guide", name) and tiny_part("guide")
        )
        Inferencer("proxyclip", **(SMALL | {"encoder": "bundled"}))
        assert asked == {"guide": "bundled"}

    def test_a_module_is_taken_as_it_is(self) -> None:
        guide = tiny_part("guide")
        assert Inferencer("proxyclip", guide=guide, **SMALL).scorer.guide is guide

    def test_a_part_without_use_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="'sclip' has no use for the part 'guide'"):
            Inferencer("sclip", guide="dino_vitb8", **SMALL)

    def test_a_part_that_is_needed(self) -> None:
        with pytest.raises(ConfigError, match="needs a guide"):
            Inferencer("proxyclip", guide="none", **SMALL)

    def test_corrclip_without_sam_takes_regions(self) -> None:
        corrclip = Inferencer("corrclip", sam="none", **SMALL)
        image = random_image(70, 109)
        regions = np.zeros((70, 109), np.int64)
        regions[:, 50:] = 1
        (result,) = corrclip([image], CLASSES, regions=[regions])
        assert result.image_hw == (70, 109)
        with pytest.raises(ConfigError, match="give region maps"):
            next(corrclip([image], CLASSES))
        with pytest.raises(ShapeError, match=r"3x3 \(HxW\) and its image 70x109"):
            next(corrclip([image], CLASSES, regions=[np.zeros((3, 3), np.int64)]))
        with pytest.raises(ConfigError, match="integers"):
            next(corrclip([image], CLASSES, regions=[np.zeros((70, 109))]))
        with pytest.raises(ConfigError, match="fewer region maps"):
            list(corrclip([image, image], CLASSES, regions=[regions]))


class TestRefine:
    def test_names_replace_the_methods_own(self) -> None:
        assert Inferencer("naclip", **SMALL).refine == ["PAMR"]
        assert Inferencer("naclip", refine="none", **SMALL).refine == []
        assert Inferencer("sclip", refine="pamr, regions", **SMALL).refine == ["PAMR", "RegionVoting"]

    @pytest.mark.parametrize("refine", ["pamr", "sam", "regions"])
    def test_runs(self, refine: str) -> None:
        (result,) = Inferencer("sclip", refine=refine, **SMALL)([random_image(70, 109)], CLASSES)
        assert result.labels.shape == (70, 109)
        assert np.isfinite(result.confidence).all()

    def test_unknown(self) -> None:
        with pytest.raises(ConfigError, match="Did you mean 'pamr'"):
            Inferencer("sclip", refine="pamrr", **SMALL)


def test_descriptions_enrich_the_words(tmp_path: Path) -> None:
    file = tmp_path / "descriptions.yaml"
    file.write_text("cat: [It has whiskers., It purrs.]\ngrass: [It is green.]\n")
    plain, enriched = Inferencer("excel", **WHOLE), Inferencer("excel", enrich=file, **WHOLE)
    assert not torch.allclose(plain.bank(CLASSES)[1].embeddings, enriched.bank(CLASSES)[1].embeddings)
    assert enriched.describe()["enrich"]["grass"] == ["It is green."]


@pytest.mark.parametrize("method", ["proxyclip", "trident", "clip-dinoiser-teacher"])
def test_compiled_blocks_give_the_same(method: str) -> None:
    image = random_image(70, 109)
    (plain,) = Inferencer(method, **SMALL)([image], CLASSES)
    (compiled,) = Inferencer(method, compile="eager", **SMALL)([image], CLASSES)
    np.testing.assert_allclose(compiled.confidence, plain.confidence, atol=1e-4)


def test_bf16_parts_follow() -> None:
    inferencer = Inferencer("proxyclip", dtype="bf16", **SMALL)
    assert next(inferencer.scorer.guide.trunk.parameters()).dtype == torch.bfloat16
    (result,) = inferencer([random_image(70, 109)], CLASSES)
    assert np.isfinite(result.confidence).all()


def test_stuff_has_no_boxes_and_no_number() -> None:
    words = Inferencer("sclip", **SMALL).words("dog, grass", ("detect", "count"))
    assert words.things == (True, False)
    (answer,) = Inferencer("sclip", **SMALL).answers(
        [random_image(70, 109)], "dog, grass", tasks=("detect", "count", "instances")
    )
    assert 1 not in answer.detections.labels
    assert [each.name for each in answer.counts.classes] == ["dog"]
    assert not answer.instances.is_thing[answer.instances.labels == 1].any()
