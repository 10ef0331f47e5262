"""Boundary F-score: against the definition, pixel by pixel, and where the answer is known."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from ovseg.errors import ConfigError, ShapeError
from ovseg.metrics import BoundaryF


def blobs(hw: tuple[int, int], labels: list[int], seed: int, cell: int = 5) -> np.ndarray:
    """Patches of labels with ragged borders."""
    rng = np.random.default_rng(seed)
    coarse = rng.choice(labels, (hw[0] // cell + 1, hw[1] // cell + 1))
    picture = np.kron(coarse, np.ones((cell, cell), int))[: hw[0], : hw[1]]
    return np.where(rng.random(hw) < 0.02, rng.choice(labels, hw), picture).astype(np.uint8)


def slow_pixels(labels: np.ndarray, exists: np.ndarray, label: int) -> list[tuple[int, int]]:
    height, width = labels.shape
    found = []
    for y in range(height):
        for x in range(width):
            if labels[y, x] != label or not exists[y, x]:
                continue
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            around = [(v, u) for v, u in around if 0 <= v < height and 0 <= u < width and exists[v, u]]
            if any(labels[v, u] != label for v, u in around):
                found.append((y, x))
    return found


def slow_scores(predicted: np.ndarray, truth: np.ndarray, num_classes: int, tolerance: float) -> dict:
    exists = truth != 255
    radius = tolerance * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)
    scores = {}
    for label in range(num_classes):
        ours, theirs = slow_pixels(predicted, exists, label), slow_pixels(truth, exists, label)
        if not ours and not theirs:
            continue
        near = [
            sum(any(math.dist(p, q) <= radius for q in b) for p in a)
            for a, b in ((ours, theirs), (theirs, ours))
        ]
        precision, recall = near[0] / len(ours) if ours else 0, near[1] / len(theirs) if theirs else 0
        scores[label] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return scores


def test_against_the_definition() -> None:
    measured = BoundaryF(5, tolerance=0.05)
    all_scores = []
    for seed, hw in enumerate([(21, 34), (40, 13), (9, 30)]):
        truth, predicted = blobs(hw, [0, 1, 3], seed), blobs(hw, [0, 1, 2, 200], seed + 9)
        predicted[:, : hw[1] // 2] = np.roll(truth, 1, axis=0)[:, : hw[1] // 2]
        truth[2:6, 3:9] = 255
        scores = slow_scores(predicted, truth, 5, 0.05)
        all_scores.append(scores)
        assert measured.update(predicted, truth) == pytest.approx(np.mean(list(scores.values())))
    report = measured.report()
    assert report.images == 3
    assert report.mean_f == pytest.approx(np.mean([np.mean(list(each.values())) for each in all_scores]))
    assert 0.2 < report.mean_f < 0.9
    for label in range(5):
        known = [each[label] for each in all_scores if label in each]
        if known:
            assert report.per_class[label] == pytest.approx(np.mean(known))
        else:
            assert np.isnan(report.per_class[label])
    assert report.per_class[2] == 0  # predicted, never true
    assert np.isnan(report.per_class[4])


def test_a_shifted_edge_counts_within_the_tolerance_only() -> None:
    truth = np.zeros((60, 80), np.uint8)  # diagonal 100
    truth[:, 40:] = 1
    for shift, expected in ((0, 1.0), (2, 1.0), (3, 0.0)):
        predicted = np.zeros_like(truth)
        predicted[:, 40 + shift :] = 1
        assert BoundaryF(2, tolerance=0.025).update(predicted, truth) == expected


def test_precision_and_recall_both_count() -> None:
    truth = np.zeros((30, 40), np.uint8)
    truth[:, 20:] = 1
    predicted = truth.copy()
    predicted[5:10, 3:8] = 1  # an island that is not there
    f = BoundaryF(2).update(predicted, truth)
    assert f == pytest.approx(BoundaryF(2).update(truth, predicted))
    assert 0.6 < f < 1


def test_borders_of_the_unlabelled_are_none() -> None:
    truth = np.zeros((20, 30), np.uint8)
    truth[:, 10:13] = 255
    predicted = truth.copy()
    predicted[:, 11:] = 0
    measured = BoundaryF(2)
    assert math.isnan(measured.update(predicted, truth))
    assert math.isnan(measured.report().mean_f)
    truth[:, 20:] = 1  # void beside a class bounds it
    void = np.where(truth == 1, 7, truth)
    assert measured.update(void, truth) == pytest.approx(0.5)


def test_merging_is_seeing_both() -> None:
    together, parts = BoundaryF(3), [BoundaryF(3), BoundaryF(3)]
    for seed, part in enumerate(parts):
        pair = blobs((24, 31), [0, 1, 2], seed), blobs((24, 31), [0, 1], seed + 5)
        part.update(*pair)
        together.update(*pair)
    parts[0].merge(parts[1])
    np.testing.assert_allclose(parts[0].report().per_class, together.report().per_class)
    assert parts[0].report().mean_f == pytest.approx(together.report().mean_f)
    with pytest.raises(ConfigError):
        parts[0].merge(BoundaryF(3, tolerance=0.1))


def test_fast_at_the_size_of_scenes() -> None:
    truth, predicted = blobs((224, 288), [0, 1, 2, 3, 4], 0, 40), blobs((224, 288), [0, 1, 2, 3, 4], 1, 40)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        BoundaryF(56).update(predicted, truth)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.05  # about 2 ms on an idle machine


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        BoundaryF(0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        BoundaryF(2, tolerance=3.0)
    with pytest.raises(ShapeError, match=r"\(2, 3\).*\(3, 2\)"):
        BoundaryF(3).update(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
