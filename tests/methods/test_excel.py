from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import random_bank, random_image, tiny_encoder

from ovseg.correlation.calibration import adapted_attention, calibrated_attention
from ovseg.errors import ConfigError, VocabularyError
from ovseg.methods.clip_surgery import clip_surgery, two_paths
from ovseg.methods.excel import ExcelScorer, excel, seeds
from ovseg.refine.par import PAR
from ovseg.structures import Pictures


def build(**options) -> ExcelScorer:
    return excel(tiny_encoder(), **({"short_side": 64, "dual_blocks": 2} | options))


def background_bank():
    return random_bank(background=frozenset({0}))


def test_calibration_equals_the_formula() -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 5)
    extra = torch.rand(2, 6, 6)
    expected = torch.zeros(2, 7, 7)
    for head in range(4):
        parts = [x[:, head] @ x[:, head].mT / 5**0.5 for x in (q, k, v)]
        expected += sum(part.softmax(-1) for part in parts) / 3
        expected += F.pad(extra, (1, 0, 1, 0))
    torch.testing.assert_close(calibrated_attention(q, k, v, extra), expected)
    torch.testing.assert_close(calibrated_attention(q, k, v).sum(-1), torch.full((2, 7), 4.0))
    assert calibrated_attention(q.half(), k.half(), v.half()).isfinite().all()


def test_adapted_attention_is_of_each_image() -> None:
    features = torch.randn(3, 8, 2, 5)
    features[1] = 1.0  # flat
    together = adapted_attention(features)
    torch.testing.assert_close(together.sum(-1), torch.ones(3, 10))
    for index in range(3):
        torch.testing.assert_close(adapted_attention(features[index : index + 1])[0], together[index])


def test_original_path_is_untouched() -> None:
    scorer, image = build(), torch.rand(1, 3, 64, 80)
    with torch.no_grad():
        plain = scorer.encoder(image, scorer.positions)
        ours = scorer.features(image)
        adapted = scorer.features(image, torch.randn(1, 6, 4, 5))
    torch.testing.assert_close(ours.prefix, plain.prefix, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(adapted.prefix, plain.prefix, atol=1e-5, rtol=1e-4)
    assert (ours.grid - plain.grid).abs().max() > 1e-2
    assert (ours.grid - adapted.grid).abs().max() > 1e-3


def test_more_dual_blocks_than_blocks_are_all() -> None:
    image = torch.rand(1, 3, 64, 80)
    with torch.no_grad():
        many, all_of_them = (build(dual_blocks=count).features(image).grid for count in (9, 3))
        assert torch.equal(many, all_of_them)
        with pytest.raises(ConfigError, match="dual_blocks"):
            build(dual_blocks=0).features(image)


def test_watching_changes_nothing() -> None:
    encoder, seen = tiny_encoder(), []
    with torch.no_grad():
        tokens, _ = encoder.embed(torch.rand(1, 3, 64, 80))
        arguments = (encoder.tower, tokens, 2, lambda q, k, v: v)
        plain = two_paths(*arguments)
        watched = two_paths(*arguments, lambda index, q, k: seen.append(index))
    torch.testing.assert_close(watched, plain, atol=1e-5, rtol=1e-4)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("method", [excel, clip_surgery])
class TestBothSurgeries:
    @pytest.mark.parametrize("hw", [(37, 2000), (70, 109), (200, 16)])
    def test_odd_sizes_are_finite(self, method, hw: tuple[int, int]) -> None:
        scorer = method(tiny_encoder(), short_side=64)
        labels, confidence = scorer(scorer.prepare([random_image(*hw)]), random_bank(), hw).labels()
        assert tuple(labels.shape) == (1, *hw)
        assert confidence.isfinite().all()

    def test_flat_grey_is_finite(self, method) -> None:
        scorer = method(tiny_encoder(), short_side=64)
        score_map = scorer(Pictures(torch.full((1, 3, 64, 96), 0.5)), random_bank())
        assert score_map.cosine.isfinite().all()

    def test_mixed_batch_equals_one_by_one(self, method) -> None:
        images = [random_image(70, 109, seed) for seed in range(3)]
        images[1][:] = 127
        scorer = method(tiny_encoder(), short_side=64, crop=48, stride=24)
        together = scorer(scorer.prepare(images), random_bank()).cosine
        for index, image in enumerate(images):
            alone = scorer(scorer.prepare([image]), random_bank()).cosine[0]
            torch.testing.assert_close(alone, together[index], atol=1e-5, rtol=1e-4)


def test_par_is_a_step_of_refinement() -> None:
    images = [random_image(70, 109)]
    plain, refined = build(), build(par_steps=2)
    before = plain(plain.prepare(images), random_bank(), (70, 109))
    after = refined(refined.prepare(images), random_bank(), (70, 109))
    colours = refined.prepare(images).image
    colours = F.interpolate(colours, size=(70, 109), mode="bilinear", align_corners=False)[0]
    maps = before.pictures(0, before.cosine[0], (70, 109))
    expected = PAR(2).spread(colours)(maps)
    assert (expected - maps).abs().max() > 1e-4
    torch.testing.assert_close(after.pictures(0, after.cosine[0], (70, 109)), expected)


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("hw", [(70, 109), (200, 17)])
def test_seeds(hw: tuple[int, int], as_published: bool) -> None:
    scorer = build(as_published=as_published)
    found = seeds(scorer, random_image(*hw), background_bank(), [3, 1], par=PAR(3))
    assert found.present == (3, 1)
    assert found.scores.shape == (3, *hw)
    assert found.labels.shape == hw
    assert set(found.labels.unique().tolist()) <= {0, 1, 3}
    assert found.cams.isfinite().all()
    assert found.scores.min() >= 0
    assert found.scores.max() <= 1
    torch.testing.assert_close(found.scores[0], 1 - found.scores[1:].amax(dim=0))
    if not as_published:
        assert found.cams.amin() >= 0
        assert found.cams.amax() == 1


def test_seeds_of_a_flat_image_are_finite() -> None:
    found = seeds(build(), np.full((64, 96, 3), 127, np.uint8), background_bank(), [1], par=PAR(2))
    assert found.scores.isfinite().all()


def test_seeds_need_a_background_and_known_classes() -> None:
    image, bank = random_image(64, 80), background_bank()
    with pytest.raises(VocabularyError, match="background class"):
        seeds(build(), image, replace(bank, background=frozenset()), [1])
    for wrong in ([], [0], [1, 9]):
        with pytest.raises(VocabularyError, match="present"):
            seeds(build(), image, bank, wrong)
    with pytest.raises(ConfigError, match="attention_blocks"):
        seeds(build(), image, bank, [1], attention_blocks=0)
