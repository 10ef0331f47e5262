"""Average precision: against pycocotools, against a slow reference, and where the answer is known."""

from __future__ import annotations

import contextlib
import io
import math

import numpy as np
import pytest

from ovseg.detection_results import Detections
from ovseg.errors import ConfigError, ShapeError
from ovseg.metrics.detection import AveragePrecision, average_precision, overlaps
from ovseg.rle import encode_mask

NAMES = ("a", "b", "c", "d")
HW = (50, 70)


def ellipses(rng: np.random.Generator, boxes: np.ndarray) -> tuple:
    ys, xs = np.mgrid[: HW[0], : HW[1]] + 0.5
    masks = []
    for left, top, right, bottom in boxes:
        rx, ry = (right - left) / 2, (bottom - top) / 2
        masks.append(((xs - left - rx) / rx) ** 2 + ((ys - top - ry) / ry) ** 2 <= 1)
    return tuple(encode_mask(each) for each in masks)


def image(seed: int, misses: float = 0.2) -> tuple[Detections, Detections]:
    """True objects of classes a, b, d; detections of all classes, many of them near the truth."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 9))
    corner = rng.uniform(0, 35, (count, 2))
    boxes = np.round(np.concatenate([corner, corner + rng.uniform(5, 15, (count, 2))], axis=1)).astype(
        np.float32
    )
    labels = rng.choice([0, 1, 3], count)
    truth = Detections(boxes, labels, np.ones(count, np.float32), NAMES, HW, ellipses(rng, boxes))
    again = rng.integers(0, count, 2 * count) if count else np.zeros(0, int)
    near = boxes[again] + np.round(rng.normal(0, 1.5, (len(again), 4))).astype(np.float32)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 2)
    found_labels = np.where(rng.random(len(again)) < misses, rng.integers(0, 4, len(again)), labels[again])
    scores = np.round(rng.random(len(again)), 1).astype(np.float32)  # with ties
    return Detections(near, found_labels, scores, NAMES, HW, ellipses(rng, near)), truth


IMAGES = [image(seed) for seed in range(12)]
THRESHOLDS = (0.5, 0.55, 0.75, 0.9)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_against_pycocotools(kind: str) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    truth, found = [], []
    measured = AveragePrecision(4, kind=kind, iou_thresholds=THRESHOLDS, max_detections=100)
    for number, (detections, objects) in enumerate(IMAGES, start=1):
        measured.update(detections, objects)
        found += detections.to_coco(number)
        truth += objects.to_coco(number)
    for number, each in enumerate(truth, start=1):
        each.update(id=number, iscrowd=0)
    with contextlib.redirect_stdout(io.StringIO()):
        data = coco.COCO()
        data.dataset = {
            "images": [{"id": n, "height": HW[0], "width": HW[1]} for n in range(1, len(IMAGES) + 1)],
            "annotations": truth,
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)],
        }
        data.createIndex()
        judge = evaluation.COCOeval(data, data.loadRes(found), "bbox" if kind == "box" else "segm")
        judge.params.iouThrs = np.array(THRESHOLDS)
        judge.evaluate()
        judge.accumulate()
    theirs = judge.eval["precision"][:, :, :, 0, 2].mean(axis=1)
    ours = measured.report()
    known = theirs[0] > -1
    assert known.tolist() == [True, True, False, True]
    np.testing.assert_allclose(ours.precision[:, known], theirs[:, known], atol=1e-9)
    np.testing.assert_allclose(ours.recall[:, known], judge.eval["recall"][:, known, 0, 2], atol=1e-9)
    assert np.isnan(ours.precision[:, 2]).all()
    assert ours.at(0.5) == pytest.approx(theirs[0, known].mean())
    assert ours.mean_ap == pytest.approx(theirs[:, known].mean())
    assert 0.2 < ours.at(0.5) < 0.95


def test_masks_overlap_pixel_by_pixel() -> None:
    for found, truth in IMAGES[:5]:
        matrix = overlaps(found, truth, "mask")
        for i in range(len(found)):
            for j in range(len(truth)):
                p, q = found.mask(i), truth.mask(j)
                assert matrix[i, j] == pytest.approx((p & q).sum() / max((p | q).sum(), 1))


def test_average_precision_by_hand() -> None:
    hits = np.array([True, False, True, False])
    points = [(hits[: k + 1].sum() / 3, hits[: k + 1].mean()) for k in range(4)]
    best = [max((p for r, p in points if r >= recall), default=0) for recall in np.linspace(0, 1, 101)]
    assert average_precision(hits, 3) == pytest.approx(np.mean(best))
    assert average_precision(np.array([True, True]), 2) == 1
    assert average_precision(np.zeros(0, bool), 2) == 0


def test_perfect_nothing_and_wrong() -> None:
    perfect, nothing, wrong = (AveragePrecision(4, kind="mask") for _ in range(3))
    for _, truth in IMAGES:
        perfect.update(truth, truth)
        nothing.update(Detections.empty(NAMES, HW, masks=True), truth)
        swapped = Detections(truth.boxes_xyxy, (truth.labels + 1) % 4, truth.scores, NAMES, HW, truth.masks)
        wrong.update(swapped, truth)
    assert perfect.report().at(0.5) == 1
    assert nothing.report().at(0.5) == 0
    assert wrong.report().at(0.5) < 0.2
    assert math.isnan(AveragePrecision(2).report().mean_ap)


def test_a_false_alarm_costs_only_where_it_is_surer() -> None:
    box = np.array([[0, 0, 10, 10]], np.float32)
    truth = Detections(box, np.zeros(1, int), np.ones(1, np.float32), NAMES, HW)
    for score, expected in ((0.9, 0.5), (0.1, 1.0)):
        both = Detections(
            np.concatenate([box, box + 30]), np.zeros(2, int), np.array([0.5, score], np.float32), NAMES, HW
        )
        measured = AveragePrecision(1)
        measured.update(both, truth)
        assert measured.report().at(0.5) == pytest.approx(expected)


def test_merging_equals_one_pass() -> None:
    whole, parts = AveragePrecision(4), [AveragePrecision(4), AveragePrecision(4)]
    for number, pair in enumerate(IMAGES):
        whole.update(*pair)
        parts[number >= 5].update(*pair)
    parts[0].merge(parts[1])
    np.testing.assert_array_equal(parts[0].report().precision, whole.report().precision)
    with pytest.raises(ConfigError, match="merged"):
        whole.merge(AveragePrecision(4, kind="mask"))


def test_only_the_surest_count() -> None:
    found, truth = IMAGES[1]
    limited, cut = AveragePrecision(4, max_detections=1), AveragePrecision(4)
    limited.update(found, truth)
    order = np.argsort(-found.scores, kind="stable")
    first = [np.flatnonzero(found.labels[order] == k)[:1] for k in range(4)]
    cut.update(found.select(order[np.concatenate(first)]), truth)
    np.testing.assert_array_equal(limited.report().precision, cut.report().precision)


def test_permuting_classes_permutes_the_figures() -> None:
    order = np.array([2, 0, 3, 1])
    plain, permuted = AveragePrecision(4), AveragePrecision(4)
    for found, truth in IMAGES:
        plain.update(found, truth)
        permuted.update(*(
            Detections(e.boxes_xyxy, order[e.labels], e.scores, NAMES, HW) for e in (found, truth)
        ))  # fmt: skip
    np.testing.assert_array_equal(permuted.report().precision[:, order], plain.report().precision)


def test_mistakes_are_named() -> None:
    found, truth = IMAGES[1]
    with pytest.raises(ShapeError, match="without masks"):
        AveragePrecision(4, kind="mask").update(Detections.empty(NAMES, HW), truth)
    with pytest.raises(ShapeError, match="an image of"):
        AveragePrecision(4).update(Detections.empty(NAMES, (3, 4)), truth)
    with pytest.raises(ShapeError, match=r"classes are 0 \.\. 0"):
        AveragePrecision(1).update(found, truth)
    with pytest.raises(ConfigError, match="iou_thresholds"):
        AveragePrecision(4, iou_thresholds=())
    with pytest.raises(ConfigError, match=r"not at 0\.75"):
        AveragePrecision(4).report().at(0.75)
