from __future__ import annotations

import math

import pytest

from ovseg.errors import ConfigError, ShapeError
from ovseg.metrics.counting import CountingErrors

PAIRS = [(3.0, 4.0), (10.5, 8.0), (7.0, 7.0), (90.0, 120.0)]


def collected(pairs: list[tuple[float, float]], **options: object) -> CountingErrors:
    errors = CountingErrors(**options)
    for predicted, truth in pairs:
        errors.update(predicted, truth)
    return errors


def test_mae_and_rmse_are_those_of_a_slow_loop() -> None:
    report = collected(PAIRS).report()
    assert report.mae == pytest.approx(sum(abs(p - t) for p, t in PAIRS) / 4)
    assert report.rmse == pytest.approx(math.sqrt(sum((p - t) ** 2 for p, t in PAIRS) / 4))
    assert report.overall.bias == pytest.approx(sum(p - t for p, t in PAIRS) / 4)


def test_ranges_split_by_the_true_number() -> None:
    report = collected(PAIRS, ranges=(0, 5, 8)).report()
    assert [(r.least, r.most, r.images) for r in report.ranges] == [(0, 4, 1), (5, 7, 1), (8, math.inf, 2)]
    assert [r.mae for r in report.ranges] == pytest.approx([1, 0, 16.25])
    assert [r.bias for r in report.ranges] == pytest.approx([-1, 0, -13.75])


def test_the_baseline_guesses_the_mean() -> None:
    assert collected([(0.0, 2.0), (0.0, 6.0)]).report().baseline.mae == pytest.approx(2)
    given = collected([(0.0, 2.0), (0.0, 6.0)], mean_count=1.0).report().baseline
    assert (given.mae, given.rmse) == (pytest.approx(3), pytest.approx(math.sqrt(13)))


def test_merging_equals_collecting_at_once() -> None:
    both = collected(PAIRS[:1])
    both.merge(collected(PAIRS[1:]))
    assert both.report() == collected(PAIRS).report()
    with pytest.raises(ConfigError, match="same ranges"):
        both.merge(collected(PAIRS, ranges=(0, 5)))


def test_no_image_gives_no_figure() -> None:
    report = CountingErrors().report()
    assert math.isnan(report.mae)
    assert math.isnan(report.baseline.rmse)
    assert report.overall.images == 0
    assert report.ranges == ()


def test_what_is_no_count_is_refused() -> None:
    errors = CountingErrors()
    for predicted, truth in [(math.nan, 1.0), (1.0, math.inf), (1.0, -1.0)]:
        with pytest.raises(ShapeError, match="finite"):
            errors.update(predicted, truth)
    with pytest.raises(ConfigError, match="rising"):
        CountingErrors(ranges=(0, 5, 5))
