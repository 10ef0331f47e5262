"""Average precision of boxes and of masks, as COCO measures it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from ovseg.detection_results import Detections
from ovseg.errors import ConfigError, ShapeError
from ovseg.rle import Rle, run_lengths

#: Precision is read at these recalls.
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class DetectionReport:
    """What was measured.

    Attributes:
        precision: `(T, K)` average precision at each IoU threshold, in [0, 1]; NaN for classes without truth.
        recall: `(T, K)` share of the true objects that were found at all; likewise.
        iou_thresholds: the T thresholds.
    """

    precision: Float[np.ndarray, "T K"]
    recall: Float[np.ndarray, "T K"]
    iou_thresholds: tuple[float, ...]

    @property
    def per_class(self) -> Float[np.ndarray, " K"]:
        """Mean over the thresholds."""
        return self.precision.mean(axis=0)

    @property
    def mean_ap(self) -> float:
        """Mean over thresholds and the classes that have truth; NaN where none has."""
        return _mean(self.precision)

    def at(self, iou: float) -> float:
        """Mean over classes at one threshold: `at(0.5)` is AP50."""
        if iou not in self.iou_thresholds:
            raise ConfigError(f"AP was measured at IoU {self.iou_thresholds}, not at {iou}")
        return _mean(self.precision[self.iou_thresholds.index(iou)])


class AveragePrecision:
    """Matches the surest detections first, then averages precision over 101 recalls, class by class.

    The figures of pycocotools' `COCOeval`, area "all", without crowds: a detection takes the free true object
    of its class that it overlaps most, where that is enough; at each recall counts the best precision at that
    recall or a higher one.

    Args:
        num_classes: labels are 0 .. num_classes - 1.
        kind: what overlaps: "box" or "mask".
        iou_thresholds: overlap over union that is enough; COCO's AP takes .50, .55 ... .95.
        max_detections: of an image and class, the surest.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        kind: Literal["box", "mask"] = "box",
        iou_thresholds: Sequence[float] = (0.5,),
        max_detections: int = 100,
    ) -> None:
        if num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {num_classes}")
        if not iou_thresholds or not all(0 < each <= 1 for each in iou_thresholds):
            raise ConfigError(f"iou_thresholds must be above 0 and at most 1, got {tuple(iou_thresholds)}")
        self.num_classes = num_classes
        self.kind: Literal["box", "mask"] = kind
        self.iou_thresholds = tuple(float(each) for each in iou_thresholds)
        self.max_detections = max_detections
        self.truths = np.zeros(num_classes, np.int64)
        self.scores: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
        self.hits: list[list[np.ndarray]] = [[] for _ in range(num_classes)]

    def update(self, found: Detections, truth: Detections) -> None:
        """Adds an image.

        Args:
            found: what was detected.
            truth: what is there; scores do not matter.

        Raises:
            ShapeError: the images differ in size, masks are missing, or a label is no class.
        """
        if found.image_hw != truth.image_hw:
            raise ShapeError(
                f"detections are of an image of {found.image_hw}, the truth of one of {truth.image_hw} (H, W)"
            )
        for what, each in (("detections", found), ("the truth", truth)):
            if self.kind == "mask" and each.masks is None:
                raise ShapeError(f"{what} came without masks: give masks, or measure boxes")
            if len(each) and not 0 <= each.labels.min() <= each.labels.max() < self.num_classes:
                raise ShapeError(
                    f"{what} have labels {each.labels.min()} .. {each.labels.max()}, "
                    f"the classes are 0 .. {self.num_classes - 1}"
                )
        for label in np.union1d(found.labels, truth.labels).tolist():
            there = truth.select(truth.labels == label)
            mine = np.flatnonzero(found.labels == label)
            mine = mine[np.argsort(-found.scores[mine], kind="stable")][: self.max_detections]
            overlap = overlaps(found.select(mine), there, self.kind)
            self.truths[label] += len(there)
            self.scores[label].append(found.scores[mine])
            self.hits[label].append(np.stack([match(overlap, each) for each in self.iou_thresholds]))

    def merge(self, other: AveragePrecision) -> None:
        """Adds what another accumulator has seen."""
        if any(
            getattr(self, each) != getattr(other, each)
            for each in ("num_classes", "kind", "iou_thresholds", "max_detections")
        ):
            raise ConfigError(
                "only accumulators of the same classes, kind, thresholds and limit can be merged"
            )
        self.truths += other.truths
        for label in range(self.num_classes):
            self.scores[label] += other.scores[label]
            self.hits[label] += other.hits[label]

    def report(self) -> DetectionReport:
        """The figures so far."""
        shape = len(self.iou_thresholds), self.num_classes
        precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
        for label in np.flatnonzero(self.truths).tolist():
            precision[:, label] = recall[:, label] = 0
            if not self.scores[label]:
                continue
            order = np.argsort(-np.concatenate(self.scores[label]), kind="stable")
            hits = np.concatenate(self.hits[label], axis=1)[:, order]
            for row, hit in enumerate(hits):
                precision[row, label] = average_precision(hit, int(self.truths[label]))
            recall[:, label] = hits.sum(axis=1) / self.truths[label]
        return DetectionReport(precision, recall, self.iou_thresholds)


def overlaps(found: Detections, truth: Detections, kind: str) -> Float[np.ndarray, "N M"]:
    """Intersection over union of every pair."""
    if kind == "box":
        low = np.maximum(found.boxes_xyxy[:, None, :2], truth.boxes_xyxy[:, :2])
        high = np.minimum(found.boxes_xyxy[:, None, 2:], truth.boxes_xyxy[:, 2:])
        shared = np.prod((high - low).clip(min=0).astype(np.float64), axis=2)
        areas = [np.prod((b[:, 2:] - b[:, :2]).astype(np.float64), axis=1) for b in _boxes(found, truth)]
    else:
        edges = [[_ones(each) for each in one.masks or ()] for one in (found, truth)]
        areas = [np.array([float((b - a).sum()) for a, b in one]) for one in edges]
        shared = np.array([[_shared(p, q) for q in edges[1]] for p in edges[0]], np.float64)
        shared = shared.reshape(len(found), len(truth))
    union = areas[0][:, None] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match(overlap: Float[np.ndarray, "N M"], threshold: float) -> Bool[np.ndarray, " N"]:
    """Which detections, the surest first, take a true object; of equal overlaps, the last as in COCO."""
    free = np.ones(overlap.shape[1], bool)
    hits = np.zeros(len(overlap), bool)
    for index, row in enumerate(overlap):
        best = np.where(free, row, -1.0)
        if best.size and best.max() >= min(threshold, 1 - 1e-10):
            taken = best.size - 1 - int(best[::-1].argmax())
            free[taken], hits[index] = False, True
    return hits


def average_precision(hits: Bool[np.ndarray, " N"], truths: int) -> float:
    """The mean over `RECALLS` of the best precision at that recall or a higher one.

    Args:
        hits: of all detections, the surest first.
        truths: how many true objects there are.
    """
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(right / truths, RECALLS, side="left")
    return float(np.append(best, 0.0)[place].mean())


def _boxes(*detections: Detections) -> list[np.ndarray]:
    return [each.boxes_xyxy for each in detections]


def _ones(rle: Rle) -> tuple[np.ndarray, np.ndarray]:
    """Where the runs of ones begin and end, in the order of the columns."""
    edges = np.cumsum(run_lengths(rle))
    return edges[:-1:2] if len(edges) % 2 else edges[::2], edges[1::2]


def _shared(first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]) -> float:
    """Pixels that two lists of runs have in common: those of the second below each edge of the first."""
    starts, ends = second
    before = np.append(0, np.cumsum(ends - starts))

    def below(edges: np.ndarray) -> np.ndarray:
        run = np.searchsorted(starts, edges, side="right")
        inside = np.where(run > 0, np.minimum(edges, np.append(0, ends)[run]) - np.append(0, starts)[run], 0)
        return np.where(run > 0, before[np.maximum(run - 1, 0)] + inside, 0)

    return float((below(first[1]) - below(first[0])).sum())


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
