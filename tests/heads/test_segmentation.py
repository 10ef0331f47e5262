from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import random_bank

from ovseg.errors import ConfigError
from ovseg.heads import SegmentationHead
from ovseg.resampling import Resampling
from ovseg.score_map import ScoreMap
from ovseg.structures import TextBank
from ovseg.windows import WindowPlan


def score_map(bank: TextBank, batch: int = 2) -> ScoreMap:
    torch.manual_seed(3)
    cosine = torch.randn(batch, len(bank.embeddings), 4, 6).tanh()
    return ScoreMap(cosine, bank, 5.0, Resampling.bilinear((4, 6), (29, 47)))


def test_no_threshold_keeps_every_pixel() -> None:
    m = score_map(random_bank())
    results = SegmentationHead()(m)
    assert [r.image_hw for r in results] == [(29, 47)] * 2
    assert np.array_equal(results[1].labels, m.labels()[0][1].numpy())
    assert sum(results[0].shares().values()) == pytest.approx(1)


def test_unlikely_pixels_become_void_without_background() -> None:
    m = score_map(random_bank())
    result = SegmentationHead(threshold=0.4)(m)[0]
    assert np.array_equal(result.labels == 255, result.confidence < np.float32(0.4))
    assert 0 < (result.labels == 255).mean() < 1
    assert sum(result.shares().values()) == pytest.approx((result.labels != 255).mean())


def test_unlikely_pixels_become_background_where_there_is_one() -> None:
    m = score_map(random_bank(background=frozenset({2})))
    result = SegmentationHead(threshold=0.4)(m)[0]
    assert (result.labels[result.confidence < 0.4] == 2).all()
    assert (result.labels != 255).all()


def test_a_class_threshold_comes_first() -> None:
    bank = random_bank(thresholds=(None, 0.99, None, None))
    m = score_map(bank)
    best = m.labels()[0][0].numpy()
    result = SegmentationHead()(m)[0]
    assert (best == 1).any()
    assert (result.labels[best == 1] == 255).all()
    assert np.array_equal(result.labels[best != 1], best[best != 1])


def test_all_void() -> None:
    result = SegmentationHead(threshold=1.0)(score_map(random_bank()))[0]
    assert (result.labels == 255).all()
    assert result.shares() == {}


def test_one_class_takes_all() -> None:
    result = SegmentationHead(threshold=0.5)(score_map(random_bank((1,))))[0]
    assert (result.labels == 0).all()
    np.testing.assert_allclose(result.confidence, 1)


def test_permuting_classes_permutes_the_answer() -> None:
    m = score_map(random_bank())
    order = torch.tensor([3, 1, 0, 2])
    permuted = replace(m, bank=replace(m.bank, class_of_query=order[m.bank.class_of_query]))
    ours = SegmentationHead()(permuted)[0].labels
    assert np.array_equal(ours, order.numpy()[SegmentationHead()(m)[0].labels])


def test_area_filter_drops_small_classes_only_where_small() -> None:
    m = score_map(random_bank(background=frozenset({0})))
    plain = SegmentationHead()(m)
    shares = [np.bincount(r.labels.ravel(), minlength=4)[1:] / (r.labels != 0).sum() for r in plain]
    limit = float(np.sort(np.concatenate(shares))[1]) + 1e-3
    for result, share in zip(SegmentationHead(area_threshold=limit)(m), shares, strict=True):
        dropped = [k + 1 for k in range(3) if share[k] <= limit]
        assert not np.isin(result.labels, dropped).any()
    assert any((s <= limit).any() for s in shares)


def test_more_than_255_classes_take_16_bits() -> None:
    bank = random_bank((1,) * 300)
    result = SegmentationHead(threshold=1.0)(score_map(bank, batch=1))[0]
    assert result.labels.dtype == np.uint16
    assert result.void == 65535
    assert SegmentationHead()(score_map(random_bank((1,) * 255), batch=1))[0].labels.dtype == np.uint8


def test_scores_and_colors_are_kept_when_asked_for() -> None:
    m = score_map(random_bank())
    colors = ((1, 2, 3), None, None, None)
    result = SegmentationHead(keep_scores=True)(m, colors=colors)[1]
    assert result.colors == colors
    assert result.scores.shape == (4, 4, 6)  # 29 x 47 pixels, an eighth, rounded up
    full = torch.empty(4, 29, 47)
    for ys, xs, piece in m.tiles(1, (29, 47)):
        full[:, ys, xs] = piece
    np.testing.assert_allclose(result.scores[:, 2, 3], full[:, 18, 27], atol=0.1)
    assert SegmentationHead()(m)[0].scores is None


def test_scores_of_windows_are_a_picture_and_no_mosaic() -> None:
    """A class that owns the left half owns it in `scores`, though windows lie side by side in the mosaic."""
    bank = random_bank((1, 1))
    windows = WindowPlan(64, 32).windows((64, 160), (16, 16))
    left = torch.linspace(0, 1, 160) < 0.5
    grids = torch.stack(
        [
            torch.stack([half, ~half]).float()[:, None].expand(2, 4, 4)
            for half in left.unfold(0, 64, 32)[:, 8::16]
        ]
    )
    m = ScoreMap(windows.join(grids), bank, 20.0, windows.resampling((64, 160), (4, 4), (64, 160)))
    scores = SegmentationHead(keep_scores=True)(m)[0].scores
    assert scores.shape == (2, 8, 20)
    assert (scores[0, :, :9] > 0.5).all()
    assert (scores[0, :, 11:] < 0.5).all()


def test_mask_of_unknown_class() -> None:
    result = SegmentationHead()(score_map(random_bank()))[0]
    assert result.mask("class1").shape == (29, 47)
    with pytest.raises(KeyError, match="class3"):
        result.mask("cat")


@pytest.mark.parametrize("options", [dict(threshold=1.2), dict(area_threshold=-0.1)])
def test_bad_options(options: dict) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        SegmentationHead(**options)
