"""Resampled figures: against a slow loop, and what an interval must do."""

from __future__ import annotations

import numpy as np
import pytest

from ovseg.errors import ShapeError
from ovseg.metrics import IoU, bootstrap_mean_iou, paired_interval


def images(count: int, skill: float, seed: int, classes: int = 4) -> np.ndarray:
    """Counts of images whose pixels are right with the probability `skill`."""
    rng = np.random.default_rng(3)  # the same truth for all
    found = np.random.default_rng(seed)
    counts = []
    for _ in range(count):
        truth = rng.integers(0, classes - rng.integers(0, 2), (13, 17))
        wrong = found.integers(0, classes, truth.shape)
        measured = IoU(classes)
        measured.update(np.where(found.random(truth.shape) < skill, truth, wrong), truth)
        counts.append(measured.counts)
    return np.stack(counts)


def test_against_a_slow_loop() -> None:
    sets = [images(5, 0.5, 0), images(4, 0.7, 1)]
    sets[0][:, :, 3] = 0
    sets[0][2, :, 3] = (0, 0, 9)  # a class that only one image has
    ours = bootstrap_mean_iou(sets, resamples=20, seed=6)
    generator = np.random.default_rng(6)
    draws = [generator.multinomial(len(s), np.full(len(s), 1 / len(s)), size=20) for s in sets]
    for index in range(20):
        figures = []
        for each, drawn in zip(sets, draws, strict=True):
            total = sum(times * image for times, image in zip(drawn[index], each, strict=True))
            ratios = [h / (p + t - h) for h, p, t in total.T if p + t - h]
            figures.append(np.mean(ratios))
        assert ours[index] == pytest.approx(np.mean(figures))


def test_pairing_narrows_the_interval() -> None:
    poor, good = [images(30, 0.5, 1)], [images(30, 0.6, 1)]
    low, high = paired_interval(good, poor, resamples=400)
    assert 0 < low < high
    point = [np.divide(*_mean(each[0])).mean() for each in (good, poor)]
    assert low < point[0] - point[1] < high
    samples = [bootstrap_mean_iou(each, resamples=400, seed=s) for s, each in enumerate((good, poor))]
    unpaired = np.quantile(samples[0] - samples[1], [0.025, 0.975])
    assert high - low < unpaired[1] - unpaired[0]
    assert paired_interval(good, good, resamples=50) == (0.0, 0.0)


def _mean(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    hits, predicted, true = counts.sum(axis=0)
    return hits, predicted + true - hits


def test_other_images_are_refused() -> None:
    with pytest.raises(ShapeError, match="same images"):
        paired_interval([images(3, 0.5, 0)], [images(4, 0.5, 0)])
