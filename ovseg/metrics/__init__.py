"""Accumulators: predictions and truth in, figures out. They know arrays, and nothing of models or data."""

from ovseg.metrics.boundary import BoundaryF, BoundaryReport
from ovseg.metrics.iou import IoU, IoUReport

__all__ = ["BoundaryF", "BoundaryReport", "IoU", "IoUReport"]
