"""Boundary F-score: whether class boundaries lie where they should, which IoU hardly sees."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Integer

from ovseg.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class BoundaryReport:
    """What was measured.

    Attributes:
        mean_f: mean over images of the mean over an image's classes, in [0, 1]; NaN where no image has a
            boundary.
        per_class: `(K,)` mean over the images that have a boundary of the class, true or predicted; NaN for a
            class without any.
        images: how many images `mean_f` is of.
    """

    mean_f: float
    per_class: Float[np.ndarray, " K"]
    images: int


class BoundaryF:
    """F1 of boundary pixels, class by class and image by image.

    A boundary pixel of a class has a 4-neighbour of another class; the image's border is no boundary. A
    predicted one is right where a true one of the same class lies within the tolerance, a true one is found
    likewise, and F = 2PR / (P + R) for each class with a boundary in the prediction or in the truth (0 where
    only one of the two has it). An image's score is the mean over those classes, so that all count alike;
    the figure is the mean over images, so that all scenes count alike.

    Pixels whose truth is `ignore_index` do not exist: what borders on them has no boundary there.

    Source: Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013,
    with its tolerance of 0.75 % of the diagonal; the same F as DAVIS's for one mask (Perazzi et al.,
    CVPR 2016).
    Deviations: the tolerance is not rounded up to whole pixels, as DAVIS does.

    Args:
        num_classes: labels are 0 .. num_classes - 1.
        tolerance: share of the image's diagonal.
        ignore_index: the truth's label for "unlabelled".
    """

    def __init__(self, num_classes: int, *, tolerance: float = 0.0075, ignore_index: int = 255) -> None:
        if num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {num_classes}")
        if not 0 < tolerance < 1:
            raise ConfigError(f"tolerance must be a share of the diagonal between 0 and 1, got {tolerance}")
        self.num_classes = num_classes
        self.tolerance = tolerance
        self.ignore_index = ignore_index
        self.class_sum = np.zeros(num_classes)
        self.class_images = np.zeros(num_classes, np.int64)
        self.total = 0.0
        self.images = 0

    def update(self, predicted: Integer[np.ndarray, "..."], truth: Integer[np.ndarray, "..."]) -> float:
        """Adds an image; returns its own score, NaN where it has no boundary.

        Args:
            predicted: labels `(H, W)`; those outside 0 .. num_classes - 1 are void and have no boundary.
            truth: labels of the same shape.

        Raises:
            ShapeError: the shapes differ, or they are not of an image.
        """
        if predicted.shape != truth.shape or truth.ndim != 2:
            raise ShapeError(
                f"predicted labels are {predicted.shape}, the truth is {truth.shape}: both must be (H, W)"
            )
        scores = self._scores(predicted, truth)
        if not scores:
            return math.nan
        for label, score in scores.items():
            self.class_sum[label] += score
            self.class_images[label] += 1
        mean = sum(scores.values()) / len(scores)
        self.total += mean
        self.images += 1
        return mean

    def merge(self, other: BoundaryF) -> None:
        """Adds what another accumulator has seen."""
        if (other.num_classes, other.tolerance, other.ignore_index) != (
            self.num_classes,
            self.tolerance,
            self.ignore_index,
        ):
            raise ConfigError(
                "only accumulators of the same classes, tolerance and ignore_index can be merged"
            )
        self.class_sum += other.class_sum
        self.class_images += other.class_images
        self.total += other.total
        self.images += other.images

    def report(self) -> BoundaryReport:
        """The figures so far."""
        per_class = np.full(self.num_classes, np.nan)
        np.divide(self.class_sum, self.class_images, out=per_class, where=self.class_images > 0)
        return BoundaryReport(self.total / self.images if self.images else math.nan, per_class, self.images)

    def _scores(self, predicted: np.ndarray, truth: np.ndarray) -> dict[int, float]:
        """F of every class that has a boundary, by label."""
        exists = truth != self.ignore_index
        disk = _disk(self.tolerance * math.hypot(*truth.shape))
        edges = boundary_pixels(predicted, exists), boundary_pixels(truth, exists)
        labels = np.union1d(predicted[edges[0]], truth[edges[1]])
        scores = {}
        for label in labels[(labels >= 0) & (labels < self.num_classes)].tolist():
            ours, theirs = edges[0] & (predicted == label), edges[1] & (truth == label)
            hits = _within(ours, theirs, disk), _within(theirs, ours, disk)
            # 2PR / (P + R), also where one of the two has no boundary at all
            precision, recall = hits[0] / max(ours.sum(), 1), hits[1] / max(theirs.sum(), 1)
            scores[label] = float(2 * precision * recall / max(precision + recall, 1e-12))
        return scores


def boundary_pixels(
    labels: Integer[np.ndarray, "H W"], exists: Bool[np.ndarray, "H W"]
) -> Bool[np.ndarray, "H W"]:
    """Pixels with a 4-neighbour of another label, both of them existing."""
    edge = np.zeros(labels.shape, bool)
    for ahead, behind in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differs = (labels[ahead] != labels[behind]) & exists[ahead] & exists[behind]
        edge[ahead] |= differs
        edge[behind] |= differs
    return edge


def _disk(radius: float) -> np.ndarray:
    """Offsets within `radius` of the middle, as a kernel."""
    reach = np.arange(-int(radius), int(radius) + 1)
    return (np.hypot(reach[:, None], reach) <= radius).astype(np.uint8)


def _within(pixels: np.ndarray, others: np.ndarray, disk: np.ndarray) -> int:
    """How many of `pixels` have one of `others` around them."""
    return int((pixels & (cv2.dilate(others.view(np.uint8), disk) > 0)).sum())
