from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import random_bank, tiny_clip

from ovseg.errors import ConfigError, ShapeError, VocabularyError
from ovseg.text.encoder import TextEncoder
from ovseg.text.enrichment import (
    attribute_bank,
    describe,
    encode_attributes,
    enrich,
    enrich_bank,
    read_descriptions,
)


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_enrichment_equals_the_formula() -> None:
    text, attributes = unit(3, 8), 0.9 * unit(10, 8)
    for row, ours in zip(text, enrich(text, attributes, drop=0.2), strict=True):
        fit = [float(row @ a) for a in attributes]
        kept = sorted(range(10), key=lambda i, fit=fit: fit[i])[2:]
        weights = torch.tensor([fit[i] for i in kept]).softmax(dim=0)
        expected = row + sum(w * attributes[i] for w, i in zip(weights, kept, strict=True))
        torch.testing.assert_close(ours, expected / expected.norm())


@pytest.mark.parametrize(("count", "dropped"), [(1, 0), (9, 0), (10, 1), (28, 2), (112, 11), (224, 22)])
def test_a_share_of_the_attributes_is_dropped(count: int, dropped: int) -> None:
    """Only what fits worst: replacing it by what fits even less changes nothing."""
    text, attributes = unit(1, 16), unit(count, 16)
    order = (text @ attributes.T)[0].argsort()
    worse = attributes.clone()
    worse[order[:dropped]] = -10 * text
    torch.testing.assert_close(enrich(text, worse), enrich(text, attributes))
    worse[order[dropped]] = -10 * text
    assert (enrich(text, worse) - enrich(text, attributes)).abs().max() > 1e-4
    assert enrich(text, attributes).isfinite().all()


def test_background_stays() -> None:
    bank = random_bank(background=frozenset({1}))
    found = enrich_bank(bank, unit(20, 32))
    same = (found.embeddings == bank.embeddings).all(dim=1)
    assert same.tolist() == [False, True, True, True, False, False, False]
    torch.testing.assert_close(found.embeddings.norm(dim=1), torch.ones(7))
    assert found.names == bank.names


def test_centres_of_clear_clusters() -> None:
    centres = 3 * torch.eye(4, 6)
    points = (centres[:, None] + 0.01 * torch.randn(4, 25, 6)).flatten(0, 1)
    found = attribute_bank(points, 4)
    distance = torch.cdist(centres, found)
    assert distance.amin(dim=1).max() < 0.05
    assert sorted(distance.argmin(dim=1).tolist()) == [0, 1, 2, 3]
    assert torch.equal(attribute_bank(points, 4), found)  # the seed decides, not what was drawn before


def test_fewer_descriptions_than_clusters() -> None:
    assert attribute_bank(unit(5, 8), 112).shape == (5, 8)
    with pytest.raises(ConfigError, match="clusters of 0 descriptions"):
        attribute_bank(torch.zeros(0, 8))


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ShapeError, match="same model"):
        enrich_bank(random_bank(), unit(5, 9))
    with pytest.raises(ConfigError, match="drop"):
        enrich(unit(2, 8), unit(5, 8), drop=1.0)


def test_files_of_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text("cat:\n- Has whiskers.\n- It purrs.\ndog: [It barks.]\n")
    found = read_descriptions(path)
    assert found == {"cat": ["Has whiskers.", "It purrs."], "dog": ["It barks."]}
    assert describe(found)[0] == "a clean origami cat. has whiskers."
    (tmp_path / "words.json").write_text('{"cat": ["It purrs."]}')
    assert read_descriptions(str(tmp_path / "words.json")) == {"cat": ["It purrs."]}
    for wrong in ("cat: It purrs.", "cat: []", "[cat]", "{", "cat: [3]", ""):
        path.write_text(wrong)
        with pytest.raises(VocabularyError, match=r"words\.yaml"):
            read_descriptions(path)
    with pytest.raises(VocabularyError, match="absent"):
        read_descriptions(tmp_path / "absent.yaml")


def test_descriptions_to_attributes() -> None:
    clip = tiny_clip()
    encoder = TextEncoder(
        clip.model, clip.tokenizer, context_length=clip.context_length, weights_id=clip.weights_sha256
    )
    words = {"cat": ["It has whiskers.", "It purrs."], "dog": ["It barks " + "loudly " * 60]}
    attributes = encode_attributes(encoder, words, clusters=2)
    assert attributes.shape == (2, 32)
    bank = random_bank()
    assert (enrich_bank(bank, attributes).embeddings - bank.embeddings).abs().max() > 1e-3
