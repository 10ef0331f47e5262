"""What every threshold on a score would give: ROC, precision and recall, region overlap, as counts.

Everything is a sum over a table that is ordered by score, so that the areas, the best threshold and the
overlap of whole regions need the table only, and millions of pixels with equal scores are one row of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped

from ovseg.errors import ConfigError, ShapeError

#: Distinct scores that a table keeps apart: about 120 MB.
MAX_ROWS = 2**21


@dataclass(frozen=True)
class Curve:
    """What lies at or above each threshold; thresholds are the distinct scores, best first.

    Attributes:
        thresholds: `(T,)`, falling.
        hits: `(T,)`, positives with a score of at least the threshold.
        alarms: `(T,)`, negatives likewise.
    """

    thresholds: Float[np.ndarray, " T"]
    hits: Float[np.ndarray, " T"]
    alarms: Float[np.ndarray, " T"]

    @classmethod
    def of(cls, scores: Shaped[np.ndarray, " _"], truth: Shaped[np.ndarray, " _"]) -> Curve:
        """From single scores.

        Args:
            scores: higher means more positive.
            truth: whether each is positive.

        Raises:
            ShapeError: not as many scores as truths, or scores that are not finite.
        """
        if scores.shape != truth.shape:
            raise ShapeError(f"{scores.shape[0]} scores came with {truth.shape[0]} truths: give one for each")
        if not np.isfinite(scores).all():
            raise ShapeError("scores must be finite, some are NaN or infinite")
        values, row = np.unique(scores.astype(np.float64), return_inverse=True)
        positive = np.bincount(row, weights=truth.astype(bool), minlength=len(values))
        every = np.bincount(row, minlength=len(values))
        return cls.from_rows(values, positive, every - positive)

    @classmethod
    def from_rows(
        cls, scores: Shaped[np.ndarray, " T"], positives: Shaped[np.ndarray, " T"], negatives: np.ndarray
    ) -> Curve:
        """From distinct scores, rising, with how many positives and negatives have each."""
        hits, alarms = np.cumsum(positives[::-1], dtype=float), np.cumsum(negatives[::-1], dtype=float)
        return cls(scores[::-1].astype(np.float64), hits, alarms)

    @property
    def recall(self) -> Float[np.ndarray, " T"]:
        """Share of the positives found, NaN where there are none."""
        return self.hits / self.hits[-1] if self._total(self.hits) else np.full(len(self.hits), np.nan)

    @property
    def false_alarm_rate(self) -> Float[np.ndarray, " T"]:
        """Share of the negatives taken for positives, NaN where there are none."""
        known = self._total(self.alarms)
        return self.alarms / self.alarms[-1] if known else np.full(len(self.alarms), np.nan)

    @property
    def precision(self) -> Float[np.ndarray, " T"]:
        """Share of positives among what lies above the threshold."""
        return self.hits / (self.hits + self.alarms)

    @property
    def roc_area(self) -> float:
        """Area under the ROC curve: the chance that a positive scores higher, a tie counts half. NaN without
        positives or without negatives.
        """
        if not self._total(self.hits) or not self._total(self.alarms):
            return float("nan")
        return area(from_zero(self.false_alarm_rate), from_zero(self.recall))

    @property
    def average_precision(self) -> float:
        """Sum of recall steps times precision (no interpolation); NaN without positives."""
        if not self._total(self.hits):
            return float("nan")
        return float((np.diff(from_zero(self.recall)) * self.precision).sum())

    @property
    def precision_recall_area(self) -> float:
        """The trapezoid area, optimistic, that some older tables give in place of average precision."""
        if not self._total(self.hits):
            return float("nan")
        precision = np.concatenate([[1.0], self.precision])
        return area(from_zero(self.recall), precision)

    def best_f1(self) -> tuple[float, float]:
        """The best F1 of all thresholds and the threshold: what scores at least that much is positive.

        The highest of equally good thresholds; `(NaN, NaN)` without positives.
        """
        if not self._total(self.hits):
            return float("nan"), float("nan")
        f1 = 2 * self.hits / (self.hits + self.alarms + self.hits[-1])
        return float(f1.max()), float(self.thresholds[f1.argmax()])

    def false_alarms_at(self, recall: float) -> float:
        """False-alarm rate where the ROC curve, straight between its points, reaches a recall; NaN without
        positives or without negatives.
        """
        if not self._total(self.hits) or not self._total(self.alarms):
            return float("nan")
        return float(np.interp(recall, from_zero(self.recall), from_zero(self.false_alarm_rate)))

    @property
    def tie_error(self) -> float:
        """How far `roc_area` can lie from that of scores that are told apart within each row."""
        steps = np.diff(from_zero(self.false_alarm_rate)) * np.diff(from_zero(self.recall))
        return float(steps.sum() / 2)

    @staticmethod
    def _total(counts: np.ndarray) -> bool:
        return len(counts) > 0 and bool(counts[-1] > 0)


def area(x: Float[np.ndarray, " T"], y: Float[np.ndarray, " T"]) -> float:
    """The trapezoid rule."""
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())


def from_zero(values: Float[np.ndarray, " T"]) -> Float[np.ndarray, " _"]:
    """With the point before the first threshold, where nothing is found."""
    return np.concatenate([[0.0], values])


class ScoreTable:
    """Float32 scores by value, each with weights to add up: bounded memory, whatever the number of pixels.

    Scores that differ stay apart up to `max_rows` of them. Beyond that all scores, past and future, are cut
    to fewer bits of mantissa (`dropped_bits`), so that the order of updates and merges does not matter.

    Args:
        weights: how many weights a score has.
        max_rows: distinct scores kept.
    """

    def __init__(self, weights: int, *, max_rows: int = MAX_ROWS) -> None:
        if max_rows < 256:
            raise ConfigError(f"a table of scores needs at least 256 rows, got {max_rows}")
        self.max_rows = max_rows
        self.dropped_bits = 0
        self._keys = np.empty(0, np.uint32)
        self._weights = np.empty((weights, 0))
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, scores: Float[np.ndarray, "..."], *weights: Shaped[np.ndarray, "..."]) -> None:
        """Adds pixels.

        Raises:
            ShapeError: a score is not finite.
        """
        flat = scores.astype(np.float32).ravel() + np.float32(0)  # -0 is 0
        if not np.isfinite(flat).all():
            raise ShapeError("scores must be finite float32, some are NaN or infinite")
        keys = _ordered(flat) >> np.uint32(self.dropped_bits)
        columns = np.stack([np.broadcast_to(each, scores.shape).ravel() for each in weights])
        self._add(*_summed(keys, columns.astype(np.float64)))

    def merge(self, other: ScoreTable) -> None:
        """Adds what another table holds."""
        other._settle()
        self._coarsen(other.dropped_bits)
        self._add(*_summed(other._keys >> np.uint32(self.dropped_bits - other.dropped_bits), other._weights))

    def rows(self) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, "columns T"]]:
        """Distinct scores, rising, and the sum of each one's weights."""
        self._settle()
        return _score(self._keys << np.uint32(self.dropped_bits)), self._weights

    def quantile(self, share: float, column: int = 0) -> float:
        """The least score that has at least `share` of a column's weight at or below it."""
        scores, weights = self.rows()
        below = np.cumsum(weights[column])
        if not len(below) or below[-1] <= 0:
            return float("nan")
        return float(scores[min(np.searchsorted(below, share * below[-1]), len(scores) - 1)])

    def _add(self, keys: np.ndarray, weights: np.ndarray) -> None:
        self._waiting.append((keys, weights))
        if sum(len(each) for each, _ in self._waiting) > self.max_rows:
            self._settle()

    def _settle(self) -> None:
        if self._waiting:
            parts = [(self._keys, self._weights), *self._waiting]
            self._waiting = []
            keys, weights = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
            self._keys, self._weights = _summed(keys, weights)
        while len(self._keys) > self.max_rows:
            self._coarsen(self.dropped_bits + 1)

    def _coarsen(self, bits: int) -> None:
        if bits <= self.dropped_bits:
            return
        more = np.uint32(bits - self.dropped_bits)
        self._keys, self._weights = _summed(self._keys >> more, self._weights)
        self._waiting = [_summed(keys >> more, weights) for keys, weights in self._waiting]
        self.dropped_bits = bits


def _ordered(scores: Float[np.ndarray, " N"]) -> Integer[np.ndarray, " N"]:
    """Integers in the order of the float32 numbers."""
    bits = scores.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _score(keys: Integer[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """`_ordered`, undone."""
    bits = np.where(keys >> 31, keys & np.uint32(2**31 - 1), ~keys)
    return bits.astype(np.uint32).view(np.float32)


def _summed(keys: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of equal keys added up, in order."""
    if not len(keys):
        return keys, weights
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first: Bool[np.ndarray, " N"] = np.concatenate([[True], keys[1:] != keys[:-1]])
    starts = first.nonzero()[0]
    return keys[starts], np.add.reduceat(weights[:, order], starts, axis=1)
