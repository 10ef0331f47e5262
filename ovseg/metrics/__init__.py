"""Accumulators: predictions and truth in, figures out. They know arrays, and nothing of models or data."""

from ovseg.metrics.bootstrap import bootstrap_mean_iou, paired_interval
from ovseg.metrics.boundary import BoundaryF, BoundaryReport
from ovseg.metrics.iou import IoU, IoUReport

__all__ = ["BoundaryF", "BoundaryReport", "IoU", "IoUReport", "bootstrap_mean_iou", "paired_interval"]
