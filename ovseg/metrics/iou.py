"""Intersection over union of a whole dataset, class by class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Integer

from ovseg.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class IoUReport:
    """What was measured.

    Attributes:
        per_class: `(K,)` intersection over union in [0, 1]; NaN for a class that is neither in the truth nor
            predicted.
        per_class_accuracy: `(K,)` share of a class's true pixels that were found; NaN where it has none.
        pixel_accuracy: share of all pixels that were right; NaN without pixels.
    """

    per_class: Float[np.ndarray, " K"]
    per_class_accuracy: Float[np.ndarray, " K"]
    pixel_accuracy: float

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that occur; NaN when none does."""
        return _mean(self.per_class)

    @property
    def mean_accuracy(self) -> float:
        """Mean over the classes that are in the truth; NaN when none is."""
        return _mean(self.per_class_accuracy)


class IoU:
    """Sums intersections and unions over images; the ratio is taken once, at the end.

    The same figures as mmseg's `IoUMetric`: a pixel whose truth is `ignore_index` does not exist; a predicted
    label that is no class (void) is missed by the class that was there and found for none.

    Args:
        num_classes: labels are 0 .. num_classes - 1.
        ignore_index: the truth's label for "unlabelled".
    """

    def __init__(self, num_classes: int, *, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.hits = np.zeros(num_classes, np.int64)
        self.predicted = np.zeros(num_classes, np.int64)
        self.truth = np.zeros(num_classes, np.int64)

    def update(self, predicted: Integer[np.ndarray, "..."], truth: Integer[np.ndarray, "..."]) -> None:
        """Adds an image.

        Args:
            predicted: labels; those outside 0 .. num_classes - 1 are void.
            truth: labels of the same shape.

        Raises:
            ShapeError: the shapes differ, or the truth has a label that is neither a class nor ignored.
        """
        if predicted.shape != truth.shape:
            raise ShapeError(f"predicted labels are {predicted.shape}, the truth is {truth.shape} (HxW)")
        labelled = truth != self.ignore_index
        found, true = predicted[labelled].astype(np.int64), truth[labelled].astype(np.int64)
        strange = (true < 0) | (true >= self.num_classes)
        if strange.any():
            raise ShapeError(
                f"the truth has label {true[strange][0]}, none of the {self.num_classes} classes and "
                f"not the ignored {self.ignore_index}"
            )
        self.truth += self._count(true)
        self.predicted += self._count(found[(found >= 0) & (found < self.num_classes)])
        self.hits += self._count(true[found == true])

    def merge(self, other: IoU) -> None:
        """Adds what another accumulator has seen."""
        if (other.num_classes, other.ignore_index) != (self.num_classes, self.ignore_index):
            raise ConfigError("only accumulators of the same classes and ignore_index can be merged")
        self.hits += other.hits
        self.predicted += other.predicted
        self.truth += other.truth

    @classmethod
    def from_counts(cls, counts: Int[np.ndarray, "3 K"], *, ignore_index: int = 255) -> IoU:
        """An accumulator that has seen this much (see `counts`)."""
        measured = cls(counts.shape[1], ignore_index=ignore_index)
        measured.hits[:], measured.predicted[:], measured.truth[:] = counts
        return measured

    @property
    def counts(self) -> Int[np.ndarray, "3 K"]:
        """Hits, predicted and true pixels of every class so far."""
        return np.stack([self.hits, self.predicted, self.truth])

    def report(self) -> IoUReport:
        """The figures so far."""
        return IoUReport(
            per_class=_ratio(self.hits, self.predicted + self.truth - self.hits),
            per_class_accuracy=_ratio(self.hits, self.truth),
            pixel_accuracy=float(_ratio(self.hits.sum(keepdims=True), self.truth.sum(keepdims=True))[0]),
        )

    def _count(self, labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels, minlength=self.num_classes)


def _ratio(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    return np.divide(parts, wholes, out=np.full(parts.shape, np.nan), where=wholes > 0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
