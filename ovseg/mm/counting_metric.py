"""Errors of counts under mmengine's Evaluator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from ovseg.metrics.counting import RANGES, CountingErrors, RangeErrors
from ovseg.mm.registry import METRICS


@METRICS.register_module()
class CountingMetric(BaseMetric):
    """MAE and RMSE over images, by range of the true number, beside always guessing the mean.

    Args:
        mean_count: what the baseline guesses; None takes the mean of the true numbers that are tested, the
            best that a constant could know.
        ranges: see `ovseg.metrics.CountingErrors`.
        kwargs: of mmengine's `BaseMetric`.
    """

    default_prefix = ""

    def __init__(
        self, mean_count: float | None = None, ranges: Sequence[float] = RANGES, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.mean_count, self.ranges = mean_count, tuple(ranges)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keeps the two numbers of each image."""
        self.results += [(each["pred_count"].number, float(len(each["gt_points"]))) for each in data_samples]

    def compute_metrics(self, results: list[tuple[float, float]]) -> dict[str, float]:
        """`MAE`, `RMSE`, `bias`, those of the baseline, and `MAE 5-9` for each range that occurs."""
        errors = CountingErrors(ranges=self.ranges, mean_count=self.mean_count)
        for number, truth in results:
            errors.update(number, truth)
        report = errors.report()
        MMLogger.get_current_instance().info("\n" + "\n".join(table(report.ranges)))
        figures = {
            "MAE": report.mae,
            "RMSE": report.rmse,
            "bias": report.overall.bias,
            "mean-count MAE": report.baseline.mae,
            "mean-count RMSE": report.baseline.rmse,
        }
        return figures | {f"MAE {span(each)}": each.mae for each in report.ranges}


def span(errors: RangeErrors) -> str:
    """A range as words: "5-9", "500 and more", "0"."""
    if math.isinf(errors.most):
        return f"{errors.least:g} and more"
    return f"{errors.least:g}" if errors.least == errors.most else f"{errors.least:g}-{errors.most:g}"


def table(ranges: Sequence[RangeErrors]) -> list[str]:
    """A row for each range, as Markdown."""
    head = ["| true number | images | MAE | RMSE | bias |", "|---|---:|---:|---:|---:|"]
    return head + [
        f"| {span(each)} | {each.images} | {each.mae:.2f} | {each.rmse:.2f} | {each.bias:+.2f} |"
        for each in ranges
    ]
