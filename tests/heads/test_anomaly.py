from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from support import random_image

from ovseg.anomaly_results import AnomalyMap, AnomalyThreshold
from ovseg.anomaly_structures import AnomalyScores
from ovseg.errors import ConfigError, ShapeError, VocabularyError
from ovseg.heads.anomaly import AnomalyHead, top_mean
from ovseg.outputs.heat_maps import anomaly_overlay, heat_colors
from ovseg.outputs.palette import oklab
from ovseg.resampling import Resampling
from ovseg.score_map import ScoreMap
from ovseg.structures import TextBank

THRESHOLD = AnomalyThreshold(0.5, 0.4, (0.1, 0.9), (0.0, 0.8), "a test")


def found(batch: int = 2, **options: bool) -> AnomalyScores:
    torch.manual_seed(1)
    return AnomalyScores(torch.rand(batch, 3, 5), torch.rand(batch), **options)


def maps(number: int = 6, hw: tuple[int, int] = (9, 13)) -> list[tuple[AnomalyMap, bool, np.ndarray]]:
    rng = np.random.default_rng(2)
    made = []
    for index in range(number):
        mask = np.zeros(hw, bool)
        mask[2:5, 3:8] = index % 2
        heat = (rng.random(hw) + mask * 0.6).astype(np.float32)
        made.append((AnomalyMap(heat, float(heat.mean())), bool(index % 2), mask))
    return made


@pytest.mark.parametrize("align_corners", [False, True])
def test_maps_are_brought_to_the_image_as_the_method_says(align_corners: bool) -> None:
    given = found(align_corners=align_corners)
    results = AnomalyHead()(given, (31, 47))
    expected = torch.nn.functional.interpolate(
        given.map[:, None], (31, 47), mode="bilinear", align_corners=align_corners
    )
    for result, heat, score in zip(results, expected[:, 0], given.score, strict=True):
        assert result.map.dtype == np.float32
        np.testing.assert_allclose(result.map, heat, atol=1e-6)
        assert result.score == float(score)
        assert (result.label, result.mask, result.normalised_map) == (None, None, None)
    assert AnomalyHead()(given)[0].image_hw == (3, 5)


def test_smoothing_and_image_scores() -> None:
    given = found()
    smooth = AnomalyHead(sigma_px=4.0, image_score="max")(given, (31, 47))[1]
    plain = AnomalyHead()(given, (31, 47))[1]
    np.testing.assert_allclose(smooth.map, ndimage.gaussian_filter(plain.map, 4.0), atol=1e-6)
    assert smooth.score == float(smooth.map.max())
    top = AnomalyHead(image_score="top")(given, (31, 47))[1]
    assert top.score == pytest.approx(np.sort(plain.map.ravel())[-14:].mean())
    assert top_mean(np.array([1.0, 3.0, 2.0])) == 3


def test_words_for_states_are_read_from_a_score_map() -> None:
    torch.manual_seed(3)
    bank = TextBank(torch.eye(3), torch.arange(3), ("normal", "abnormal", "other"))
    m = ScoreMap(torch.randn(2, 3, 4, 6).tanh(), bank, 7.0, Resampling.bilinear((4, 6), (20, 33)))
    result = AnomalyHead(abnormal="abnormal")(m)[1]
    logits = m.resampling.apply(m.logits[1])
    np.testing.assert_allclose(result.map, logits.softmax(dim=0)[1], atol=1e-6)
    assert result.score == float(result.map.max())
    with pytest.raises(VocabularyError, match=r"'broken'.*normal, abnormal, other"):
        AnomalyHead(abnormal="broken")(m)
    alone = TextBank(torch.eye(3)[1:2], torch.tensor([0]), ("abnormal",))
    with pytest.raises(VocabularyError, match="at least one other"):
        AnomalyHead()(replace(m, cosine=m.cosine[:, 1:2], bank=alone))


def test_label_mask_and_normalised_scores() -> None:
    heat = np.array([[0.0, 0.4, 0.39999], [0.8, 0.2, 2.0]], np.float32)
    result = AnomalyMap(heat, 0.5, THRESHOLD)
    assert result.label is True
    assert replace(result, score=0.499).label is False
    assert np.array_equal(result.mask, [[False, True, False], [True, False, True]])
    np.testing.assert_allclose(result.normalised_map, [[0, 0.5, 0.49999], [1, 0.25, 1]], atol=1e-4)
    assert result.normalised_score == 0.5
    assert result.summary() == {
        "score": 0.5,
        "normalised_score": 0.5,
        "anomalous": True,
        "anomalous_share": 0.5,
    }
    json.dumps(result.judged(None).summary())


def test_threshold_from_good_images_keeps_the_stated_share() -> None:
    good = [result for result, wrong, _ in maps(40) if not wrong]
    threshold = AnomalyThreshold.from_good(iter(good), image_quantile=0.9, pixel_quantile=0.98)
    labels = [each.judged(threshold).label for each in good]
    assert sum(labels) == 1  # the quantile's own image, of 20, stays normal, and so do those below it
    flagged = np.mean([each.judged(threshold).mask.mean() for each in good])
    assert flagged == pytest.approx(0.02, abs=0.002)
    assert "0.9 of 20 good images" in threshold.how
    everything = AnomalyThreshold.from_good(good, image_quantile=1.0, pixel_quantile=1.0)
    assert not any(each.judged(everything).label or each.judged(everything).mask.any() for each in good)


def test_threshold_at_the_best_f1() -> None:
    labelled = maps(12)
    threshold = AnomalyThreshold.at_best_f1(labelled)
    heat = np.concatenate([result.map.ravel() for result, *_ in labelled])
    truth = np.concatenate([mask.ravel() for *_, mask in labelled])

    def f1(limit: float) -> float:
        chosen = heat >= np.float32(limit)
        return 2 * (chosen & truth).sum() / (chosen.sum() + truth.sum())

    assert f1(threshold.pixel) == pytest.approx(max(map(f1, heat.tolist())))
    assert [result.judged(threshold).label for result, *_ in labelled] == [wrong for _, wrong, _ in labelled]
    unmasked = AnomalyThreshold.at_best_f1([(result, wrong, None) for result, wrong, _ in labelled])
    assert unmasked.pixel == unmasked.image == threshold.image
    with pytest.raises(ConfigError, match="needs a damaged image"):
        AnomalyThreshold.at_best_f1(labelled[::2])


def test_thresholds_are_files(tmp_path: Path) -> None:
    path = tmp_path / "threshold.json"
    THRESHOLD.save(path)
    assert AnomalyThreshold.load(path) == THRESHOLD
    for content in ("{}", "[]", "no json", path.read_text().replace("0.5", "NaN"), '{"format": "other"}'):
        path.write_text(content)
        with pytest.raises(ConfigError):
            AnomalyThreshold.load(path)
    with pytest.raises(ConfigError, match="no anomaly threshold"):
        AnomalyThreshold.load(tmp_path / "absent.json")


def test_one_value_only_has_a_decision() -> None:
    flat = AnomalyMap(np.full((4, 6), 0.3, np.float32), 0.3)
    threshold = AnomalyThreshold.from_good([flat])
    judged = flat.judged(threshold)
    assert judged.label is False
    assert not judged.mask.any()
    assert np.isfinite(judged.normalised_map).all()
    assert (replace(judged, map=judged.map + 1).normalised_map == 1).all()


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="sigma_px"):
        AnomalyHead(sigma_px=-1.0)
    with pytest.raises(ConfigError, match="at least one image"):
        AnomalyThreshold.from_good([])
    with pytest.raises(ConfigError, match="image_quantile"):
        AnomalyThreshold.from_good([], image_quantile=95.0)
    with pytest.raises(ConfigError, match="finite"):
        AnomalyThreshold(float("nan"), 0.0, (0.0, 1.0), (0.0, 1.0))
    with pytest.raises(ShapeError, match="mask"):
        AnomalyThreshold.at_best_f1([(maps()[1][0], True, np.ones((3, 3), bool))])


def test_overlay_leaves_what_is_normal_clear() -> None:
    image = random_image(40, 61)
    heat = np.zeros((40, 61), np.float32)
    heat[10:20, 30:45] = 0.8
    picture = np.array(anomaly_overlay(image, AnomalyMap(heat, 0.9, THRESHOLD), scale=False))
    mask = heat > 0
    assert (picture[mask] != image[mask]).any(axis=1).all()
    outside = ~ndimage.binary_dilation(mask, np.ones((3, 3)))
    assert np.array_equal(picture[outside], image[outside])
    assert (picture[10, 30:45] == 255).all()  # the outline
    beside = np.array(anomaly_overlay(image, AnomalyMap(heat, 0.9, THRESHOLD)))
    assert np.array_equal(beside[:40, :61], picture)
    assert beside.shape[1] > 61
    flat = anomaly_overlay(image, AnomalyMap(heat * 0, 0.0), scale=False)
    assert np.array_equal(np.array(flat), image)
    with pytest.raises(ShapeError, match="same size"):
        anomaly_overlay(image[:, :-1], AnomalyMap(heat, 0.9))


def test_heat_grows_lighter_all_the_way() -> None:
    lightness = oklab(heat_colors(np.linspace(0.0, 1.0, 60)))[:, 0]
    assert (np.diff(lightness) > 0).all()
    assert lightness[-1] - lightness[0] > 0.5
