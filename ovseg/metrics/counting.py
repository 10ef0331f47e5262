"""Errors of counts: MAE and RMSE over images, by range of the true number, against a trivial guess."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from ovseg.errors import ConfigError, ShapeError

#: Least true numbers of the ranges that errors are reported for; the last is open.
RANGES = (0.0, 1.0, 5.0, 10.0, 20.0, 50.0, 100.0, 500.0)


@dataclass(frozen=True)
class RangeErrors:
    """Errors over images whose true number lies in a range.

    Attributes:
        least, most: inclusive; `most` is infinite in the last range.
        images: how many.
        mae: mean |count - truth|, NaN without images.
        rmse: root of the mean squared error (some papers print it as "MSE"), NaN without images.
        bias: mean of count - truth, NaN without images.
    """

    least: float
    most: float
    images: int
    mae: float
    rmse: float
    bias: float


@dataclass(frozen=True)
class CountingReport:
    """What was measured.

    Attributes:
        overall: over all images.
        ranges: by the true number; those without images are left out.
        baseline: errors of always guessing the mean true number, that of another split where one was given.
    """

    overall: RangeErrors
    ranges: tuple[RangeErrors, ...]
    baseline: RangeErrors

    @property
    def mae(self) -> float:
        """Mean absolute error over images."""
        return self.overall.mae

    @property
    def rmse(self) -> float:
        """Root mean squared error over images."""
        return self.overall.rmse


class CountingErrors:
    """Collects predicted and true numbers, one pair per image (or per image and class).

    Args:
        ranges: least true numbers of the ranges, rising; true numbers below the first are in no range.
        mean_count: what the baseline guesses: the mean of the training split. None takes the mean of the
            truths that were seen, which favours the baseline.
    """

    def __init__(self, *, ranges: Sequence[float | int] = RANGES, mean_count: float | None = None) -> None:
        if not ranges or any(low >= high for low, high in pairwise(ranges)):
            raise ConfigError(f"ranges must be rising numbers, at least one, got {list(ranges)}")
        self.ranges = tuple(float(least) for least in ranges)
        self.mean_count = mean_count
        self.predicted: list[float] = []
        self.truth: list[float] = []

    def update(self, predicted: float, truth: float) -> None:
        """Adds an image.

        Raises:
            ShapeError: a number that is not finite, or a true one below 0.
        """
        if not (math.isfinite(predicted) and math.isfinite(truth)) or truth < 0:
            raise ShapeError(f"counts must be finite and truths 0 or more, got {predicted} for {truth}")
        self.predicted.append(float(predicted))
        self.truth.append(float(truth))

    def merge(self, other: CountingErrors) -> None:
        """Adds what another collector has seen."""
        if (other.ranges, other.mean_count) != (self.ranges, self.mean_count):
            raise ConfigError("only collectors of the same ranges and mean_count can be merged")
        self.predicted += other.predicted
        self.truth += other.truth

    def report(self) -> CountingReport:
        """The figures so far."""
        truth, predicted = np.array(self.truth), np.array(self.predicted)
        ends = (*self.ranges[1:], math.inf)
        parts = []
        for low, high in zip(self.ranges, ends, strict=True):
            inside = (truth >= low) & (truth < high)
            if inside.any():
                most = high - 1 if high < math.inf else high
                parts.append(_errors(predicted[inside], truth[inside], low, most))
        guess = self.mean_count
        if guess is None:
            guess = float(truth.mean()) if truth.size else math.nan
        return CountingReport(
            overall=_errors(predicted, truth, 0.0, math.inf),
            ranges=tuple(parts),
            baseline=_errors(np.full(truth.shape, guess), truth, 0.0, math.inf),
        )


def _errors(
    predicted: Float[np.ndarray, " n"], truth: Float[np.ndarray, " n"], least: float, most: float
) -> RangeErrors:
    if not truth.size:
        return RangeErrors(least, most, 0, math.nan, math.nan, math.nan)
    error = predicted - truth
    mae, rmse = float(np.abs(error).mean()), float(np.sqrt((error**2).mean()))
    return RangeErrors(least, most, len(truth), mae, rmse, float(error.mean()))
