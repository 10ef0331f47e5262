"""Anomaly figures against loops written from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from ovseg.errors import ConfigError, ShapeError
from ovseg.metrics.anomaly import AnomalyMetrics, mean_report
from ovseg.metrics.ood import ood_report


def scenes(
    number: int = 5, hw: tuple[int, int] = (17, 23)
) -> list[tuple[float, bool, np.ndarray, np.ndarray]]:
    """Images of which every other one is damaged, with maps that know a little and have ties."""
    rng = np.random.default_rng(1)
    made = []
    for index in range(number):
        mask = np.zeros(hw, bool)
        if index % 2 == 0:
            mask[2:6, 3:9] = mask[12, 5] = mask[13, 6] = (
                True  # a block, and two pixels that touch at a corner
            )
            mask[9 + index :, 18:] = True
        heat = np.round(rng.normal(mask * 1.2, 1.0), 1).astype(np.float32)
        made.append((float(heat.max()), bool(mask.any()), heat, mask))
    return made


def measured(data: list, **options: float) -> AnomalyMetrics:
    metrics = AnomalyMetrics(**options)
    for score, damaged, heat, mask in data:
        metrics.update(score, damaged, heat, mask)
    return metrics


def overlap_curve(data: list, thresholds: list[float], *, strict: bool) -> tuple[np.ndarray, np.ndarray]:
    """False-positive rate and mean region overlap at each threshold, from the definition."""
    rates, overlaps = [], []
    for threshold in thresholds:
        chosen = [heat > threshold if strict else heat >= threshold for _, _, heat, _ in data]
        normal = sum((~mask).sum() for *_, mask in data)
        rates.append(sum((c & ~mask).sum() for c, (*_, mask) in zip(chosen, data, strict=True)) / normal)
        shares = []
        for c, (*_, mask) in zip(chosen, data, strict=True):
            regions, count = ndimage.label(mask, np.ones((3, 3)))
            shares += [c[regions == r].mean() for r in range(1, count + 1)]
        overlaps.append(np.mean(shares))
    return np.array(rates), np.array(overlaps)


@pytest.mark.parametrize("limit", [0.3, 0.05, 1.0])
def test_exact_overlap_against_a_fine_sum(limit: float) -> None:
    data = scenes()
    levels = sorted({float(v) for _, _, heat, _ in data for v in heat.flat}, reverse=True)
    rates, overlaps = overlap_curve(data, levels, strict=False)
    x = np.linspace(0, limit, 200_001)
    expected = np.interp(x, [0, *rates], [0, *overlaps]).mean()
    report = measured(data, fpr_limit=limit).report()
    assert report.aupro == pytest.approx(expected, abs=2e-5)
    assert 0.1 < report.aupro < 0.97


def test_stepped_overlap_against_its_definition() -> None:
    data = scenes()
    low, high = min(d[2].min() for d in data), max(d[2].max() for d in data)
    thresholds = np.arange(low, high, (high - low) / np.float32(200))
    rates, overlaps = overlap_curve(data, list(thresholds), strict=True)
    rates, overlaps = rates[rates < 0.3], overlaps[rates < 0.3]
    rates = (rates - rates.min()) / (rates.max() - rates.min())
    expected = -(np.diff(rates) * (overlaps[1:] + overlaps[:-1]) / 2).sum()
    report = measured(data).report()
    assert report.aupro_200 == pytest.approx(expected, abs=1e-9)
    assert report.aupro_200 != pytest.approx(report.aupro, abs=1e-5)


def test_limit_on_a_vertical_step() -> None:
    """What is found after the rate has reached the limit does not count."""
    heat = np.array([[5, 4, 3, 2, 1, 0]], np.float32)
    mask = np.array([[0, 1, 1, 0, 1, 1]], bool)
    m = AnomalyMetrics(fpr_limit=0.5)
    m.update(1.0, True, heat, mask)
    assert m.report().aupro == 0
    m = AnomalyMetrics(fpr_limit=1.0)
    m.update(1.0, True, heat, mask)
    assert m.report().aupro == pytest.approx(0.25)


def test_pixel_figures_pool_all_pixels() -> None:
    data = scenes()
    report = measured(data).report()
    heat, mask = (np.concatenate([d[i].ravel() for d in data]) for i in (2, 3))
    wins = (heat[mask][:, None] > heat[~mask]) + (heat[mask][:, None] == heat[~mask]) / 2
    assert report.pixel_auroc == pytest.approx(wins.mean())
    chosen = heat >= np.float32(report.pixel_threshold)
    assert report.pixel_f1_max == pytest.approx(2 * (chosen & mask).sum() / (chosen.sum() + mask.sum()))
    assert report.images == 5
    assert report.pixel_auroc_error == 0


def test_merging_is_the_same_as_one_run() -> None:
    data = scenes()
    first, second = measured(data[:2]), measured(data[2:])
    first.merge(second)
    assert first.report() == measured(data).report()
    with pytest.raises(ConfigError, match="fpr_limit"):
        first.merge(AnomalyMetrics(fpr_limit=0.1))


def test_bounded_memory_is_close_and_says_how_close() -> None:
    rng = np.random.default_rng(3)
    data = [
        (s, d, (heat + rng.normal(0, 0.3, heat.shape)).astype(np.float32), m) for s, d, heat, m in scenes()
    ]
    exact, coarse = measured(data).report(), measured(data, max_rows=256).report()
    assert exact.pixel_auroc_error == 0
    assert 0 < coarse.pixel_auroc_error < 0.05
    assert abs(coarse.pixel_auroc - exact.pixel_auroc) <= coarse.pixel_auroc_error
    assert coarse.aupro == pytest.approx(exact.aupro, abs=0.05)


def test_flat_maps() -> None:
    mask = np.zeros((4, 6), bool)
    mask[1, 2:4] = True
    m = AnomalyMetrics()
    m.update(0.0, True, np.zeros((4, 6), np.float32), mask)
    report = m.report()
    assert report.pixel_auroc == 0.5
    assert report.aupro == pytest.approx(0.15)  # a straight line to (1, 1)
    assert math.isnan(report.aupro_200)
    assert math.isnan(report.image_auroc)


def test_nothing_damaged_and_nothing_at_all() -> None:
    m = AnomalyMetrics()
    assert math.isnan(m.report().image_auroc)
    m.update(0.5, False, np.zeros((3, 5), np.float32))
    report = m.report()
    assert math.isnan(report.aupro)
    assert math.isnan(report.pixel_auroc)
    m.update(0.7, True)  # no map: image figures only
    assert m.report().image_auroc == 1


def test_mean_over_categories() -> None:
    a, b = measured(scenes()).report(), measured(scenes(4)).report()
    both = mean_report([a, b])
    assert both.aupro == pytest.approx((a.aupro + b.aupro) / 2)
    assert both.images == 9
    assert math.isnan(both.pixel_threshold)
    with pytest.raises(ConfigError, match="at least one"):
        mean_report([])


def test_bad_input() -> None:
    m = AnomalyMetrics()
    heat = np.zeros((3, 5), np.float32)
    with pytest.raises(ShapeError, match="finite"):
        m.update(float("nan"), False)
    with pytest.raises(ShapeError, match=r"\(3, 5\).*\(5, 3\)"):
        m.update(0.0, True, heat, np.zeros((5, 3), bool))
    with pytest.raises(ShapeError, match="needs the mask"):
        m.update(0.0, True, heat)
    with pytest.raises(ShapeError, match="finite"):
        m.update(0.0, False, heat + np.nan)
    assert m.report().images == 0
    with pytest.raises(ConfigError, match="fpr_limit"):
        AnomalyMetrics(fpr_limit=0.0)


def test_known_against_unknown() -> None:
    report = ood_report(np.arange(20.0), np.array([-1.0, 0.4, 0.6, 30.0]))
    # 19 of 20 known pass at 1 and up, where 1 of 4 unknown does
    assert report.fpr95 == pytest.approx(0.75)
    assert report.auroc == pytest.approx((20 + 19 + 19 + 0) / 80)
