"""Visual prototypes: what they add to a score map, and the files that carry them beside words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import random_bank, random_image, tiny_encoder

from ovseg.errors import ShapeError, VocabularyError
from ovseg.methods import build_method
from ovseg.prototypes import VisualPrototypes
from ovseg.text.vocabulary import Vocabulary

MADE_WITH = {"encoder": "tiny", "weights_sha256": "a" * 64, "method": "sclip", "options": {"crop": (64, 64)}}


def prototypes(names: tuple[str, ...] = ("class2", "class0"), dim: int = 32) -> VisualPrototypes:
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(len(names), dim, generator=generator)
    bias = torch.randn(len(names), generator=generator)
    return VisualPrototypes(names, weights, bias, 0.5, MADE_WITH, {"images": 3})


@pytest.mark.parametrize("method", ["sclip", "maskclip", "clip-surgery"])
def test_they_add_to_the_logits_of_their_classes_alone(method: str) -> None:
    scorer = build_method(method, tiny_encoder(), short_side=64)
    features = scorer.encode(scorer.prepare([random_image(64, 96)]))
    bank, given = random_bank((1, 2, 1)), prototypes()
    plain = scorer.refined(scorer.score(features, bank), features)
    found = scorer.refined(scorer.score(features, replace(bank, prototypes=given)), features)
    added = found.logits - plain.logits
    grid = features.grid[0].flatten(1)
    likely = (0.5 * (given.weights @ grid + given.bias[:, None])).softmax(dim=0)
    for place, row in ((0, 1), (3, 0)):  # queries of class0 and of class2
        expected = (2 * likely[row]).log()
        torch.testing.assert_close(added[0, place].flatten(), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(found.cosine[:, 1:3], plain.cosine[:, 1:3])  # both queries of class1


def test_features_of_another_model_are_refused() -> None:
    with pytest.raises(ShapeError, match="have 32 dimensions and the image 16"):
        prototypes().logits(torch.zeros(1, 16, 2, 3), ("class0",))


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_files_carry_them(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"words.{ending}"
    words = Vocabulary.parse({"class0": ["synonym"], "class2": None, "more": {"background": True}})
    taught = replace(words, prototypes=prototypes())
    taught.save(path)
    found = Vocabulary.parse(str(path))
    assert found.classes == words.classes
    assert found.prototypes.names == ("class2", "class0")
    assert torch.equal(found.prototypes.weights, prototypes().weights)
    assert torch.equal(found.prototypes.bias, prototypes().bias)
    assert found.prototypes.facts == {"images": 3}
    assert found.fingerprint() == taught.fingerprint() != words.fingerprint()
    found.prototypes.check(MADE_WITH)  # lists of JSON count as the tuples that they were


def test_words_can_be_added_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    replace(Vocabulary.parse("class0, class2"), prototypes=prototypes()).save(path)
    content = json.loads(path.read_text())
    content["classes"].append("zebra")
    path.write_text(json.dumps(content))
    assert Vocabulary.parse(path).names == ("class0", "class2", "zebra")


def test_words_alone_are_saved_as_json_only(tmp_path: Path) -> None:
    Vocabulary.parse("cat, dog").save(tmp_path / "words.json")
    assert Vocabulary.parse(tmp_path / "words.json").names == ("cat", "dog")
    with pytest.raises(VocabularyError, match=r"written as \.json"):
        Vocabulary.parse("cat, dog").save(tmp_path / "words.safetensors")


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"method": "maskclip"}, r"words.json: .*method 'sclip', now 'maskclip'.*tools/fit.py"),
        ({"encoder": "big", "weights_sha256": "b"}, r"encoder 'tiny', now 'big'"),
        ({"weights_sha256": "b"}, r"weights_sha256 'aaa"),
        ({"options": {"crop": (64, 32)}}, r"crop: \[64, 64\], now \[64, 32\]"),
    ],
)
def test_another_encoder_or_method_is_refused(now: dict, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        prototypes().check(MADE_WITH | now, "words.json")


def test_unreadable_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    taught = replace(Vocabulary.parse("class0, class2"), prototypes=prototypes())
    taught.save(path)
    whole = json.loads(path.read_text())
    for change in ({"tensors": "no base64!"}, {"tensors": None}, {"strength": "much"}):
        path.write_text(json.dumps(whole | {"prototypes": whole["prototypes"] | change}))
        with pytest.raises(VocabularyError, match=r"words\.json: `prototypes` cannot be read"):
            Vocabulary.parse(path)
    with pytest.raises(VocabularyError, match="cannot be read"):  # a manifest has no numbers
        Vocabulary.from_dict(taught.to_dict())
    broken = replace(prototypes(), bias=torch.tensor([0.0, float("nan")]))
    replace(taught, prototypes=broken).save(path)
    with pytest.raises(VocabularyError, match="not finite"):
        Vocabulary.parse(path)
    (tmp_path / "other.safetensors").write_bytes(b"12345678{}")
    with pytest.raises(VocabularyError, match="not a safetensors file"):
        Vocabulary.parse(tmp_path / "other.safetensors")
