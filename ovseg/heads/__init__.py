"""Readers of a score map: segmentation (detection, anomaly and counting follow)."""

from ovseg.heads.segmentation import SegmentationHead

__all__ = ["SegmentationHead"]
