"""Intersection over union: against a slow count, and against mmseg's metric."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovseg.errors import ConfigError, ShapeError
from ovseg.metrics import IoU

SHAPES = ((7, 11), (5, 3), (1, 9))


def pairs(num_classes: int, absent: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predictions with void (255) and truths with unlabelled pixels; one class in neither."""
    rng = np.random.default_rng(4)
    known = [label for label in range(num_classes) if label != absent]
    return [
        (
            rng.choice([*known, 255], size=hw).astype(np.uint8),
            rng.choice([*known[:-1], 255], size=hw).astype(np.uint8),
        )
        for hw in SHAPES
    ]


def test_against_a_slow_count() -> None:
    measured = IoU(5)
    data = pairs(5, absent=2)
    for predicted, truth in data:
        measured.update(predicted, truth)
    report = measured.report()
    pixels = [
        (p, t)
        for predicted, truth in data
        for p, t in zip(predicted.flat, truth.flat, strict=True)
        if t != 255
    ]
    for k in range(5):
        both = sum(p == t == k for p, t in pixels)
        either = sum(k in (p, t) for p, t in pixels)
        true = sum(t == k for _, t in pixels)
        assert (
            report.per_class[k] == pytest.approx(both / either) if either else np.isnan(report.per_class[k])
        )
        accuracy = report.per_class_accuracy[k]
        assert accuracy == pytest.approx(both / true) if true else np.isnan(accuracy)
    assert np.isnan(report.per_class[2])
    assert report.per_class[4] == 0  # predicted, never true
    assert report.pixel_accuracy == pytest.approx(sum(p == t for p, t in pixels) / len(pixels))
    assert report.mean_iou == pytest.approx(np.nanmean(report.per_class))


def test_against_mmseg() -> None:
    from mmseg.evaluation.metrics import IoUMetric

    metric = IoUMetric(iou_metrics=["mIoU"], prefix="x")
    metric.dataset_meta = {"classes": tuple("abcdefg")}
    ours = IoU(7)
    for predicted, truth in pairs(7, absent=3):
        ours.update(predicted, truth)
        sample = {
            "pred_sem_seg": {"data": torch.from_numpy(predicted.astype(np.int64))[None]},
            "gt_sem_seg": {"data": torch.from_numpy(truth)[None]},
        }
        metric.process({}, [sample])
    theirs = metric.compute_metrics(metric.results)
    report = ours.report()
    for name, value in (
        ("mIoU", report.mean_iou),
        ("aAcc", report.pixel_accuracy),
        ("mAcc", report.mean_accuracy),
    ):
        assert 100 * value == pytest.approx(float(theirs[name]), abs=0.0051)


def test_merging_is_seeing_both() -> None:
    together, parts = IoU(4), [IoU(4), IoU(4), IoU(4)]
    for part, (predicted, truth) in zip(parts, pairs(4, absent=1), strict=True):
        together.update(predicted, truth)
        part.update(predicted, truth)
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    np.testing.assert_array_equal(parts[0].report().per_class, together.report().per_class)
    with pytest.raises(ConfigError):
        parts[0].merge(IoU(5))


def test_nothing_seen_is_nan_and_not_a_warning() -> None:
    report = IoU(3).report()
    assert np.isnan([report.mean_iou, report.mean_accuracy, report.pixel_accuracy]).all()


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        IoU(0)
    with pytest.raises(ShapeError, match=r"\(2, 3\).*\(3, 2\)"):
        IoU(3).update(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
    with pytest.raises(ShapeError, match="label 7"):
        IoU(3).update(np.zeros((2, 3), np.uint8), np.full((2, 3), 7, np.uint8))
