"""Learned contexts and the loss of the score map."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import random_bank, random_image, tiny_clip, tiny_encoder

from ovseg.errors import ConfigError, ShapeError, VocabularyError
from ovseg.methods import build_method
from ovseg.score_map import ScoreMap
from ovseg.text.context import LearnedContext
from ovseg.text.encoder import TextEncoder
from ovseg.text.vocabulary import Vocabulary
from ovseg.training.prompt_learning import pixel_logits, score_map_loss


def encoder() -> TextEncoder:
    clip = tiny_clip()
    return TextEncoder(clip.model, clip.tokenizer, context_length=clip.context_length, weights_id="tiny")


def test_a_context_of_words_is_the_template() -> None:
    words = encoder()
    context = LearnedContext.from_words(words, "a photo of a")
    assert context.vectors.shape == (1, 4, 32)
    vocabulary = Vocabulary.parse({"cat": ["tabby cat"], "dog": {"descriptions": ["an animal that barks"]}})
    ours = context(words, vocabulary)
    theirs = words.bank(vocabulary, ["a photo of a {}."], cache_dir=False)
    torch.testing.assert_close(ours.embeddings, theirs.embeddings, rtol=1e-4, atol=1e-5)
    assert torch.equal(ours.class_of_query, theirs.class_of_query)
    assert ours.names == theirs.names


def test_class_specific_contexts() -> None:
    words = encoder()
    context = LearnedContext(32, length=3, classes=("cat", "dog"))
    assert torch.equal(context.vectors[0], context.vectors[1])  # all begin alike
    with torch.no_grad():
        context.vectors += torch.randn(context.vectors.shape, generator=torch.Generator().manual_seed(0))
    rows = context(words, Vocabulary.parse("Dog, emu, cat")).embeddings
    for row, vectors, name in zip(
        rows,
        (context.vectors[1], context.vectors.mean(dim=0), context.vectors[0]),
        ("Dog", "emu", "cat"),
        strict=True,
    ):
        alone = LearnedContext(32, length=3, init=vectors)
        torch.testing.assert_close(row, alone(words, Vocabulary.parse([name])).embeddings[0])


def test_contexts_that_do_not_fit() -> None:
    words = encoder()
    with pytest.raises(VocabularyError, match=r"the learned context of 30 leaves room for 2 of 32"):
        LearnedContext(32, length=30)(words, Vocabulary.parse("cat, dog"))
    with pytest.raises(ShapeError, match="64 wide and the text tower 32"):
        LearnedContext(64, length=2)(words, Vocabulary.parse("cat, dog"))
    with pytest.raises(ConfigError, match="needs some"):
        LearnedContext.from_words(words, " ")
    with pytest.raises(ConfigError, match="at least one vector"):
        LearnedContext(32, length=0)


def score_map(queries: tuple[int, ...] = (1, 2, 1)) -> ScoreMap:
    scorer = build_method("maskclip", tiny_encoder(), short_side=None, crop=64, stride=32)
    pictures = scorer.prepare([random_image(64, 96), random_image(64, 96, 1)])
    return scorer.score(scorer.encode(pictures), random_bank(queries))


def test_loss_is_the_cross_entropy_of_pixels() -> None:
    found = score_map()
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (2, 64, 96)))
    labels[0, :10] = 255
    logits = torch.stack([found.pictures(k, found.per_class(found.logits[k]), (64, 96)) for k in range(2)])
    torch.testing.assert_close(
        score_map_loss(found, labels), F.cross_entropy(logits, labels, ignore_index=255)
    )
    some = F.cross_entropy(logits[:, :, 2::4, 2::4], labels[:, 2::4, 2::4], ignore_index=255)
    torch.testing.assert_close(score_map_loss(found, labels, stride=4), some)
    torch.testing.assert_close(pixel_logits(found, 1, 4), logits[1, :, 2::4, 2::4])
    p = logits.softmax(dim=1).gather(1, labels.clamp_max(2)[:, None])[:, 0]
    focal = (-((1 - p) ** 2) * p.log())[labels != 255].mean()
    torch.testing.assert_close(score_map_loss(found, labels, gamma=2.0), focal)


def test_loss_without_labels_is_nothing() -> None:
    assert score_map_loss(score_map(), torch.full((2, 64, 96), 255)).item() == 0
    with pytest.raises(ShapeError, match=r"labels are \(2, 64, 64\), the score map leads to \(2, 64, 96\)"):
        score_map_loss(score_map(), torch.zeros(2, 64, 64, dtype=torch.long))
