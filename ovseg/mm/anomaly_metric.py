"""Anomaly figures as an mmengine metric: per category and their mean, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import mmengine
import numpy as np
from mmengine.dist import all_gather_object
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from PIL import Image

from ovseg.errors import ConfigError
from ovseg.metrics.anomaly import AnomalyMetrics, AnomalyReport, mean_report
from ovseg.mm.registry import METRICS

#: What is reported, in percent. "aupro" is exact (as MVTec's own script and anomalib); "aupro_200" is what
#: most papers about CLIP print, about 0.01 lower; never compare the one with the other.
FIGURES = (
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1_max",
    "aupro",
    "aupro_200",
)


@METRICS.register_module()
class AnomalyMetric(BaseMetric):
    """Image AUROC, AP and F1-max; pixel AUROC, AP and F1-max; AUPRO in both variants.

    Each category has its own figures; what is reported are their unweighted means, as benchmarks state them.
    Pixels are added up as they come and never kept. With several processes, images that a sampler shows
    twice would count twice: use `round_up=False`.

    Args:
        size: side of the square that maps and masks are resized to first, as published protocols do (240
            WinCLIP and AnoVL, 518 most others): maps bilinear, masks bilinear and cut at one half; None
            measures at each image's own size, which is stricter on small damage.
        fpr_limit: of AUPRO.
        output_dir: folder for maps as 32-bit TIFF, laid out as MVTec's own evaluation script reads them.
        report_file: JSON file for all figures of every category.
        kwargs: see mmengine's `BaseMetric`.
    """

    default_prefix = "anomaly"

    def __init__(
        self,
        *,
        size: int | None = None,
        fpr_limit: float = 0.3,
        output_dir: str | None = None,
        report_file: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if size is not None and size < 1:
            raise ConfigError(f"size is a side in pixels, or None for each image's own, got {size}")
        self.size = size
        self.fpr_limit = fpr_limit
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.report_file = report_file
        self.categories: dict[str, AnomalyMetrics] = {}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Adds a batch of what `OvAnomalyDetector` hands back."""
        for sample in data_samples:
            heat = sample["pred_anomaly_map"]["data"][0].cpu().numpy()
            mask = sample["gt_sem_seg"]["data"][0].cpu().numpy() != 0
            if self.output_dir is not None:
                path = self.output_dir / Path(
                    sample["category"], "test", *Path(sample["img_path"]).parts[-2:]
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path.with_suffix(".tiff")), heat)
            if self.size is not None:
                heat, mask = resized(heat, mask, self.size)
            metrics = self.categories.setdefault(sample["category"], AnomalyMetrics(fpr_limit=self.fpr_limit))
            metrics.update(float(sample["pred_score"]), sample["defect"] != "good", heat, mask)

    def evaluate(self, size: int) -> dict[str, float]:
        """The means over categories, in percent; the table of all is logged."""
        merged: dict[str, AnomalyMetrics] = {}
        for part in all_gather_object(self.categories):
            for category, metrics in part.items():
                if category in merged:
                    merged[category].merge(metrics)
                else:
                    merged[category] = metrics
        self.categories = {}
        found = self.compute_metrics(sorted(merged.items()))
        return {f"{self.prefix}/{name}": value for name, value in found.items()}

    def compute_metrics(self, results: list[tuple[str, AnomalyMetrics]]) -> dict[str, float]:
        """Figures from the accumulators by category.

        Raises:
            ConfigError: there are none.
        """
        reports = {category: metrics.report() for category, metrics in results}
        mean = mean_report(list(reports.values()))
        print_log("\n" + table(reports | {"mean": mean}), logger="current")
        if self.report_file is not None:
            mmengine.dump({name: asdict(each) for name, each in reports.items()}, self.report_file)
        return {name: 100 * getattr(mean, name) for name in FIGURES}


def table(reports: dict[str, AnomalyReport]) -> str:
    """A row for each category, percent."""
    width = max(map(len, reports)) + 2
    head = "".join(f"{name.replace('image', 'img').replace('pixel', 'px'):>13}" for name in FIGURES)
    rows = [f"{'category':<{width}}{head}{'images':>8}"]
    for name, report in reports.items():
        cells = "".join(f"{100 * getattr(report, figure):13.2f}" for figure in FIGURES)
        rows.append(f"{name:<{width}}{cells}{report.images:8d}")
    return "\n".join(rows)


def resized(heat: np.ndarray, mask: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Map and mask as squares; the mask is cut at one half."""
    sides = (size, size)
    small = cv2.resize(heat, sides, interpolation=cv2.INTER_LINEAR)
    soft = Image.fromarray(mask.astype(np.uint8) * 255).resize(sides, Image.Resampling.BILINEAR)
    return small, np.asarray(soft) > 127
