"""Anomaly figures: whole images, pixels, and regions found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
from jaxtyping import Float, Shaped

from ovseg.curves import MAX_ROWS, Curve, ScoreTable, area, from_zero
from ovseg.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class AnomalyReport:
    """What was measured; NaN where the data has no answer (no damaged image, no normal pixel).

    Attributes:
        image_auroc: ROC area of image scores.
        image_ap: average precision of image scores.
        image_aupr: trapezoid area under precision and recall, which some tables give as AP (AnoVL's).
        image_f1_max: best F1 of image scores; `image_threshold`: where, inclusive.
        pixel_auroc, pixel_ap, pixel_f1_max, pixel_threshold: likewise over all pixels of all images.
        aupro: region overlap up to the false-positive limit, exact: every score is a threshold, the curve is
            interpolated at the limit (MVTec AD's script, anomalib).
        aupro_200: as most zero-shot CLIP papers report it; see `AnomalyMetrics.aupro_stepped`.
        images: how many.
        pixel_auroc_error: bound on the error of `pixel_auroc` by bounded memory; 0 while all scores were
            kept apart.
    """

    image_auroc: float
    image_ap: float
    image_aupr: float
    image_f1_max: float
    image_threshold: float
    pixel_auroc: float
    pixel_ap: float
    pixel_f1_max: float
    pixel_threshold: float
    aupro: float
    aupro_200: float
    images: int
    pixel_auroc_error: float


class AnomalyMetrics:
    """Scores and maps of one category in, figures out.

    Pixels are kept as a table by score (`ovseg.curves.ScoreTable`): normal pixels, anomalous pixels, and the
    share of its region that each pixel is. All pixel figures are sums over that table.

    Regions are the 8-connected components of the truth; each counts alike, whatever its size.

    Source: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021 (PRO); the
    200-threshold variant is `cal_pro_score` of zqhang/AnomalyCLIP at 45ed4dd35c.

    Args:
        fpr_limit: region overlap is integrated up to this share of normal pixels taken for damage.
        max_rows: distinct pixel scores kept (float32).
    """

    def __init__(self, *, fpr_limit: float = 0.3, max_rows: int = MAX_ROWS) -> None:
        if not 0 < fpr_limit <= 1:
            raise ConfigError(f"fpr_limit is a rate in (0, 1], got {fpr_limit}")
        self.fpr_limit = fpr_limit
        self.scores: list[float] = []
        self.labels: list[bool] = []
        self.pixels = ScoreTable(3, max_rows=max_rows)
        self.regions = 0

    def update(
        self,
        score: float,
        damaged: bool,
        anomaly_map: Float[np.ndarray, "H W"] | None = None,
        mask: Shaped[np.ndarray, "_ _"] | None = None,
    ) -> None:
        """Adds an image.

        Args:
            score: higher means more anomalous.
            damaged: the truth.
            anomaly_map: pixel scores; None where only image figures are wanted.
            mask: where it is damaged; non-zero means damaged. None means nowhere.

        Raises:
            ShapeError: a score is not finite, the shapes differ, or a damaged image with a map has no mask.
        """
        if not np.isfinite(score):
            raise ShapeError(f"an image score must be finite, got {score}")
        if anomaly_map is not None:
            self._add_pixels(anomaly_map, damaged, mask)
        self.scores.append(float(score))
        self.labels.append(bool(damaged))

    def merge(self, other: AnomalyMetrics) -> None:
        """Adds what another accumulator has seen."""
        if other.fpr_limit != self.fpr_limit:
            raise ConfigError("only accumulators of the same fpr_limit can be merged")
        self.scores += other.scores
        self.labels += other.labels
        self.pixels.merge(other.pixels)
        self.regions += other.regions

    def report(self) -> AnomalyReport:
        """The figures so far."""
        image = Curve.of(np.array(self.scores), np.array(self.labels, bool))
        scores, (normal, damaged, covered) = self.pixels.rows()
        pixel = Curve.from_rows(scores, damaged, normal)
        image_f1, image_threshold = image.best_f1()
        pixel_f1, pixel_threshold = pixel.best_f1()
        coarse = self.pixels.dropped_bits > 0
        return AnomalyReport(
            image_auroc=image.roc_area,
            image_ap=image.average_precision,
            image_aupr=image.precision_recall_area,
            image_f1_max=image_f1,
            image_threshold=image_threshold,
            pixel_auroc=pixel.roc_area,
            pixel_ap=pixel.average_precision,
            pixel_f1_max=pixel_f1,
            pixel_threshold=pixel_threshold,
            aupro=self._aupro(pixel, covered),
            aupro_200=self.aupro_stepped(200),
            images=len(self.scores),
            pixel_auroc_error=pixel.tie_error if coarse else 0.0,
        )

    def _aupro(self, pixel: Curve, covered: Float[np.ndarray, " T"]) -> float:
        """PRO over false-positive rate, from nothing found to the limit."""
        if not self.regions or not pixel.alarms[-1]:
            return float("nan")
        rate = from_zero(pixel.false_alarm_rate)
        overlap = from_zero(np.cumsum(covered[::-1]) / self.regions)
        end = int(np.argmax(rate >= self.fpr_limit))  # the first point outside
        (x0, x1), (y0, y1) = rate[end - 1 : end + 1], overlap[end - 1 : end + 1]
        at_limit = y0 + (self.fpr_limit - x0) / (x1 - x0) * (y1 - y0)
        return (
            area(np.append(rate[:end], self.fpr_limit), np.append(overlap[:end], at_limit)) / self.fpr_limit
        )

    def aupro_stepped(self, steps: int) -> float:
        """AUPRO as the code that zero-shot CLIP papers copy has it.

        Thresholds at equal distances from the lowest score to below the highest, `score > threshold`; points
        with a false-positive rate below the limit; their rates stretched to 0 .. 1, not cut off and
        interpolated at the limit. The two figures differ by about 0.01. NaN where fewer than two different
        rates are left.
        """
        scores, (normal, _, covered) = self.pixels.rows()
        if not self.regions or normal.sum() == 0 or scores[0] == scores[-1]:
            return float("nan")
        step = (scores[-1] - scores[0]) / np.float32(steps)
        thresholds = np.arange(scores[0], scores[-1], step)  # float32, as the maps are
        above = np.searchsorted(scores, thresholds, side="right")
        rate = 1 - from_zero(np.cumsum(normal))[above] / normal.sum()
        overlap = (covered.sum() - from_zero(np.cumsum(covered))[above]) / self.regions
        kept = rate < self.fpr_limit
        rate, overlap = rate[kept][::-1], overlap[kept][::-1]
        if len(rate) < 2 or rate[0] == rate[-1]:
            return float("nan")
        return area((rate - rate[0]) / (rate[-1] - rate[0]), overlap)

    def _add_pixels(self, anomaly_map: np.ndarray, damaged: bool, mask: np.ndarray | None) -> None:
        if mask is None:
            if damaged:
                raise ShapeError("a damaged image with a map needs the mask of its damage for pixel figures")
            mask = np.zeros(anomaly_map.shape, bool)
        if mask.shape != anomaly_map.shape:
            raise ShapeError(
                f"the anomaly map is {anomaly_map.shape}, the mask {mask.shape} (HxW): resize one of them"
            )
        wrong = mask != 0
        count, regions = cv2.connectedComponents(wrong.view(np.uint8), connectivity=8)
        sizes = np.bincount(regions.ravel(), minlength=count).astype(float)
        share = 1 / np.maximum(sizes, 1)
        share[0] = 0.0
        self.pixels.add(anomaly_map, ~wrong, wrong, share[regions])
        self.regions += count - 1


def mean_report(reports: Sequence[AnomalyReport]) -> AnomalyReport:
    """Each figure's unweighted mean over categories, as benchmarks state it; `images` is the sum.

    Thresholds are NaN: each category has its own.
    """
    if not reports:
        raise ConfigError("the mean over categories needs at least one report, got none")
    means = {
        field.name: float(np.mean([getattr(each, field.name) for each in reports]))
        for field in fields(AnomalyReport)
    }
    means.update(image_threshold=float("nan"), pixel_threshold=float("nan"))
    return AnomalyReport(**{**means, "images": sum(each.images for each in reports)})  # type: ignore[arg-type]
