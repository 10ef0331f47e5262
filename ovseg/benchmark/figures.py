"""Figures of scenes that were measured one by one: means over seeds, and how far a gain may be chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ovseg.curves import Curve
from ovseg.metrics.detection import average_precision

#: What was measured: by seed, then by scene.
Records = Sequence[Sequence[dict[str, Any]]]
Metric = Callable[[Sequence[dict[str, Any]]], float]

RESAMPLES = 500


@dataclass(frozen=True)
class Gain:
    """The difference of a metric between two answers to the same scenes.

    Attributes:
        value: of the mean over seeds.
        low, high: its 95 % interval, scenes drawn again within each seed, the same for both.
    """

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0 on the side of gain."""
        return self.low > 0


def over_seeds(metric: Metric, records: Records) -> tuple[float, float]:
    """Mean of a metric over the seeds, and their standard deviation (of a sample; 0 for one seed)."""
    values = [metric(each) for each in records]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def gain(
    metric: Metric, ours: Records, theirs: Records, *, resamples: int | None = None, seed: int = 0
) -> Gain:
    """By how much ours is greater. The percentile interval of paired resamples (Efron, 1979).

    Args:
        metric: more is better.
        ours, theirs: of the same scenes.
        resamples: how often scenes are drawn again, by default `RESAMPLES`.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    differences = []
    for _ in range(RESAMPLES if resamples is None else resamples):
        both = []
        for mine, other in zip(ours, theirs, strict=True):
            drawn = generator.integers(len(mine), size=len(mine))
            both.append(metric([mine[k] for k in drawn]) - metric([other[k] for k in drawn]))
        differences.append(np.mean(both))
    low, high = np.nanquantile(differences, [0.025, 0.975])
    return Gain(over_seeds(metric, ours)[0] - over_seeds(metric, theirs)[0], float(low), float(high))


def ap50(kind: str) -> Metric:
    """Average precision at an IoU of .5, mean over the classes that have truth.

    Records have `labels`, `scores`, hits as `box` and `mask`, and the true objects' labels as `truth`.
    """

    def metric(scenes: Sequence[dict[str, Any]]) -> float:
        truth = np.concatenate([np.asarray(each["truth"], int) for each in scenes])
        labels = np.concatenate([np.asarray(each["labels"], int) for each in scenes])
        scores = np.concatenate([np.asarray(each["scores"], float) for each in scenes])
        hits = np.concatenate([np.asarray(each[kind], bool) for each in scenes])
        order = np.argsort(-scores, kind="stable")
        labels, hits = labels[order], hits[order]
        classes, numbers = np.unique(truth, return_counts=True)
        each = [
            average_precision(hits[labels == k], n) for k, n in zip(classes, numbers.tolist(), strict=True)
        ]
        return float(np.mean(each)) if each else float("nan")

    return metric


def mean_of(name: str) -> Metric:
    """The mean of a number over the scenes that have it."""

    def metric(scenes: Sequence[dict[str, Any]]) -> float:
        values = [each[name] for each in scenes if each.get(name) is not None]
        return float(np.mean(values)) if values else float("nan")

    return metric


def count_errors(scenes: Sequence[dict[str, Any]]) -> np.ndarray:
    """Number minus truth, of every class that a scene shows."""
    return np.array(
        [each["found"].get(name, 0) - number for each in scenes for name, number in each["truth"].items()]
    )


def negative_mae(scenes: Sequence[dict[str, Any]]) -> float:
    """Minus the mean absolute error, so that more is better."""
    return -float(np.abs(count_errors(scenes)).mean())


def rmse(scenes: Sequence[dict[str, Any]]) -> float:
    """Root of the mean squared error."""
    return float(np.sqrt((count_errors(scenes) ** 2).mean()))


def never_there(scenes: Sequence[dict[str, Any]]) -> float:
    """Objects per scene of classes that it does not show."""
    return float(
        np.mean([sum(n for name, n in each["found"].items() if name not in each["truth"]) for each in scenes])
    )


def image_auroc(scenes: Sequence[dict[str, Any]]) -> float:
    """ROC area of image scores, mean over kinds; records have `kind`, `score` and `damaged`.

    A kind whose images are all good or all damaged, as a resample's may be, is left out.
    """
    areas = []
    for kind in sorted({each["kind"] for each in scenes}):
        those = [each for each in scenes if each["kind"] == kind]
        damaged = np.array([each["damaged"] for each in those])
        if damaged.any() and not damaged.all():
            areas.append(Curve.of(np.array([each["score"] for each in those]), damaged).roc_area)
    return float(np.mean(areas)) if areas else float("nan")
