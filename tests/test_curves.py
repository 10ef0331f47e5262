"""Curves over thresholds against loops written from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ovseg.curves import Curve, ScoreTable
from ovseg.errors import ConfigError, ShapeError


def some(number: int = 40, levels: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and truths that lean the right way."""
    rng = np.random.default_rng(2)
    truth = rng.random(number) < 0.4
    return np.round(rng.normal(truth * 0.8, 1.0) * levels / 4) / levels, truth


def test_areas_against_pairs_and_loops() -> None:
    scores, truth = some()
    curve = Curve.of(scores, truth)
    pairs = [(p > n) + (p == n) / 2 for p in scores[truth] for n in scores[~truth]]
    assert curve.roc_area == pytest.approx(np.mean(pairs))
    precision, recall, f1 = [], [], []
    for threshold in sorted(set(scores), reverse=True):
        chosen = scores >= threshold
        hits = (chosen & truth).sum()
        precision.append(hits / chosen.sum())
        recall.append(hits / truth.sum())
        f1.append((2 * precision[-1] * recall[-1] / max(precision[-1] + recall[-1], 1e-12), threshold))
    steps = np.diff([0, *recall])
    assert curve.average_precision == pytest.approx((steps * precision).sum())
    middle = (np.array([1, *precision[:-1]]) + precision) / 2
    assert curve.precision_recall_area == pytest.approx((steps * middle).sum())
    assert curve.best_f1() == pytest.approx(max(f1))


def test_reversed_scores_reverse_the_area() -> None:
    scores, truth = some()
    assert Curve.of(-scores, truth).roc_area == pytest.approx(1 - Curve.of(scores, truth).roc_area)


def test_perfect_and_flat_scores() -> None:
    truth = np.array([False, True, True, False])
    perfect = Curve.of(truth.astype(float), truth)
    assert (perfect.roc_area, perfect.average_precision, perfect.best_f1()) == (1, 1, (1, 1))
    assert perfect.false_alarms_at(0.95) == 0
    flat = Curve.of(np.zeros(4), truth)
    assert (flat.roc_area, flat.average_precision) == (0.5, 0.5)
    assert flat.false_alarms_at(0.95) == pytest.approx(0.95)


@pytest.mark.parametrize("truth", [[True, True], [False, False], []])
def test_one_kind_only_has_no_area(truth: list[bool]) -> None:
    curve = Curve.of(np.arange(float(len(truth))), np.array(truth, bool))
    assert math.isnan(curve.roc_area)
    assert math.isnan(curve.false_alarms_at(0.95))
    assert math.isnan(curve.average_precision) != any(truth)
    assert math.isnan(curve.best_f1()[0]) != any(truth)


def test_bad_scores() -> None:
    with pytest.raises(ShapeError, match="3 scores came with 2"):
        Curve.of(np.zeros(3), np.zeros(2, bool))
    with pytest.raises(ShapeError, match="finite"):
        Curve.of(np.array([0, np.nan]), np.array([True, False]))


def test_table_keeps_every_score_in_order() -> None:
    rng = np.random.default_rng(5)
    scores = np.round(rng.normal(0, 50, (7, 90))).astype(np.float32) / 8
    table = ScoreTable(2)
    for row in scores:
        table.add(row, row > 0, np.ones_like(row) / 4)
    values, (positive, quarter) = table.rows()
    expected, counts = np.unique(scores + np.float32(0), return_counts=True)
    assert np.array_equal(values, expected)
    assert np.array_equal(positive, np.where(expected > 0, counts, 0))
    assert np.array_equal(quarter, counts / 4)
    assert table.quantile(0.5, 1) == np.sort(scores.ravel())[scores.size // 2 - 1]
    assert table.quantile(1.0, 1) == scores.max()


def test_bounded_table_depends_on_neither_order_nor_merges() -> None:
    rng = np.random.default_rng(6)
    truth = rng.random((9, 400)) < 0.3
    scores = rng.normal(truth * 1.0, 1.0).astype(np.float32)
    tables = [ScoreTable(2, max_rows=300) for _ in range(3)]
    for row, positive in zip(scores, truth, strict=True):
        tables[0].add(row, positive, ~positive)
    for row, positive in zip(scores[::-1], truth[::-1], strict=True):
        tables[1 if row[0] > 0 else 2].add(row, positive, ~positive)
    tables[1].merge(tables[2])
    values, weights = tables[0].rows()
    assert 100 < len(values) <= 300
    assert tables[0].dropped_bits == tables[1].dropped_bits > 0
    assert np.array_equal(values, tables[1].rows()[0])
    assert np.array_equal(weights, tables[1].rows()[1])
    coarse, exact = Curve.from_rows(values, *weights), Curve.of(scores.ravel(), truth.ravel())
    assert 0 < abs(coarse.roc_area - exact.roc_area) <= coarse.tie_error < 0.02


def test_bad_tables() -> None:
    with pytest.raises(ConfigError, match="at least 256 rows"):
        ScoreTable(1, max_rows=3)
    with pytest.raises(ShapeError, match="finite"):
        ScoreTable(1).add(np.array([np.inf], np.float32), np.ones(1))
    assert math.isnan(ScoreTable(1).quantile(0.5))
