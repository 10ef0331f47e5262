from __future__ import annotations

import pytest
import torch
from support import random_bank, random_image, tiny_encoder

from ovseg.errors import ConfigError
from ovseg.methods.sc_clip import layer_at_depth, sc_clip
from ovseg.scorer import Scorer
from ovseg.structures import Pictures


def build(**options) -> Scorer:
    return sc_clip(tiny_encoder(), **({"short_side": 64, "crop": 48, "stride": 24} | options))


@pytest.mark.parametrize("hw", [(37, 2000), (70, 109), (200, 16)])
def test_odd_sizes_are_finite(hw: tuple[int, int]) -> None:
    scorer = build()
    labels, confidence = scorer(scorer.prepare([random_image(*hw)]), random_bank(), hw).labels()
    assert tuple(labels.shape) == (1, *hw)
    assert confidence.isfinite().all()
    assert (confidence > 0).all()


def test_flat_grey_is_finite() -> None:
    for value in (0.0, 0.5):
        score_map = build()(Pictures(torch.full((1, 3, 64, 96), value)), random_bank())
        assert score_map.cosine.isfinite().all()


def test_mixed_batch_equals_one_by_one() -> None:
    images = [random_image(70, 109, seed) for seed in range(3)]
    images[1][:] = 127
    scorer = build()
    together = scorer(scorer.prepare(images), random_bank()).cosine
    for index, image in enumerate(images):
        alone = scorer(scorer.prepare([image]), random_bank()).cosine[0]
        torch.testing.assert_close(alone, together[index], atol=1e-5, rtol=1e-4)


def test_every_option_matters() -> None:
    image = Pictures(torch.from_numpy(random_image(128, 160)).permute(2, 0, 1)[None].float() / 255)
    plain = dict(short_side=None, crop=None, stride=None, middle_layer=1, early_layer=1, levels=(0, 1))
    reference = build(**plain).encode(image).grid
    changes = dict(
        middle_layer=0,
        early_layer=0,
        levels=(1, 1),
        threshold=0.9,
        class_weight=0.0,
        neighbours=3,
        outlier_share=0.2,
    )
    for name, value in changes.items():
        changed = build(**(plain | {name: value})).encode(image).grid
        assert (changed - reference).abs().max() > 1e-5, name


def test_layers_scale_with_depth() -> None:
    assert [layer_at_depth(each, 12) for each in (8, 3, 9)] == [8, 3, 9]
    assert [layer_at_depth(each, 24) for each in (8, 3, 9)] == [17, 7, 19]
    for depth in range(2, 50):
        assert all(0 <= layer_at_depth(each, depth) < depth - 1 for each in (8, 3, 9))


def test_layers_that_are_not_there() -> None:
    for wrong in (dict(middle_layer=2), dict(early_layer=-1), dict(levels=(0, 7))):
        with pytest.raises(ConfigError, match="the tower has 3 blocks"):
            build(**wrong)
    with pytest.raises(ConfigError, match="first <= last"):
        build(levels=(1, 0))


def test_published_positions_differ_only_on_reshaped_grids() -> None:
    whole = dict(crop=None, stride=None, short_side=None)
    square, reshaped = Pictures(torch.rand(1, 3, 64, 64)), Pictures(torch.rand(1, 3, 32, 128))
    ours, theirs = build(**whole), build(**whole, as_published=True)
    assert torch.equal(ours.encode(square).grid, theirs.encode(square).grid)
    assert (ours.encode(reshaped).grid - theirs.encode(reshaped).grid).abs().max() > 1e-5
