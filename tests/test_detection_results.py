"""Run lengths, COCO, YOLO, supervision and panoptic pictures, against the formats' own definitions."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ovseg.detection_results import Detections
from ovseg.errors import MissingDependencyError, ShapeError
from ovseg.panoptic_results import Panoptic
from ovseg.rle import decode_mask, encode_mask, from_coco, mask_area, run_lengths

NAMES = ("cat", "dog", "red ball")


def blobs(hw: tuple[int, int], share: float, seed: int, cell: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.random((hw[0] // cell + 1, hw[1] // cell + 1)) < share
    return np.kron(coarse, np.ones((cell, cell), bool))[: hw[0], : hw[1]]


def sample() -> Detections:
    masks = []
    for seed in (1, 2, 3):
        mask = np.zeros((30, 50), bool)
        mask[5 * seed : 5 * seed + 9, 8 * seed : 8 * seed + 12] = True
        masks.append(mask)
    boxes = np.array([[8 * s, 5 * s, 8 * s + 12, 5 * s + 9] for s in (1, 2, 3)], np.float32)
    return Detections(
        boxes,
        np.array([2, 0, 2]),
        np.array([0.9, 0.5, 0.25], np.float32),
        NAMES,
        (30, 50),
        tuple(encode_mask(each) for each in masks),
    )


@pytest.mark.parametrize("hw", [(1, 1), (7, 5), (40, 33), (3, 200), (150, 60)])
@pytest.mark.parametrize(("share", "cell"), [(0.0, 1), (0.02, 1), (0.5, 1), (0.3, 12), (1.0, 1)])
def test_run_lengths_are_cocos(hw: tuple[int, int], share: float, cell: int) -> None:
    mask = blobs(hw, share, 5, cell)
    rle = encode_mask(mask)
    assert np.array_equal(decode_mask(rle), mask)
    assert mask_area(rle) == mask.sum()
    assert run_lengths(rle).tolist() == slow_runs(mask)
    coco = pytest.importorskip("pycocotools.mask")
    assert rle["counts"] == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def slow_runs(mask: np.ndarray) -> list[int]:
    runs, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


@pytest.mark.parametrize("at_xy", [(0, 0), (20, 0), (0, 9), (20, 9), (7, 3)])
def test_a_piece_is_the_whole(at_xy: tuple[int, int]) -> None:
    piece = blobs((21, 12), 0.6, 2)
    piece[:, 4:7] = True  # columns that are full
    canvas = np.zeros((30, 32), bool)
    canvas[at_xy[1] : at_xy[1] + 21, at_xy[0] : at_xy[0] + 12] = piece
    assert encode_mask(piece, at_xy=at_xy, image_hw=(30, 32)) == encode_mask(canvas)
    full = np.ones((30, 12), bool)
    canvas[:] = False
    canvas[:, 20:] = True
    assert encode_mask(full, at_xy=(20, 0), image_hw=(30, 32)) == encode_mask(canvas)


def test_bad_masks() -> None:
    with pytest.raises(ShapeError, match="leaves its image"):
        encode_mask(np.ones((4, 5), bool), at_xy=(1, 0), image_hw=(4, 5))
    with pytest.raises(ShapeError, match="damaged"):
        decode_mask({"size": [4, 5], "counts": encode_mask(np.ones((3, 5), bool))["counts"]})


def test_coco_segmentations_of_every_kind() -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:12, 5:25] = True
    rle = encode_mask(mask)
    assert from_coco(rle, (20, 30)) == rle
    assert from_coco({"size": [20, 30], "counts": slow_runs(mask)}, (20, 30)) == rle
    assert from_coco({"size": [20, 30], "counts": rle["counts"].encode()}, (20, 30)) == rle
    drawn = decode_mask(from_coco([[5, 3, 25, 3, 25, 12, 5, 12]], (20, 30)))
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.85
    with pytest.raises(ShapeError, match="float"):
        from_coco(1.5, (20, 30))


def test_coco_entries() -> None:
    found = json.loads(json.dumps(sample().to_coco(7)))
    assert [each["category_id"] for each in found] == [3, 1, 3]
    assert found[0]["bbox"] == [8, 5, 12, 9]
    assert found[0]["score"] == pytest.approx(0.9)
    assert found[0]["area"] == 12 * 9
    assert found[0]["segmentation"]["size"] == [30, 50]
    assert sample().to_coco("a.jpg", [10, 20, 30])[1]["category_id"] == 10
    with pytest.raises(ShapeError, match="category_ids"):
        sample().to_coco(1, [1])


def test_yolo_lines() -> None:
    lines = sample().to_yolo().splitlines()
    assert lines[0] == "2 0.280000 0.316667 0.240000 0.300000"
    assert sample().to_yolo(scores=True).splitlines()[1].endswith(" 0.500000")


def test_attributes_come_along() -> None:
    plain = sample()
    found = Detections(
        plain.boxes_xyxy, plain.labels, plain.scores, NAMES, (30, 50),
        attributes=np.array([[0.1, 0.9]] * 3, np.float32), attribute_names=("old", "wet"),
    )  # fmt: skip
    assert found.to_coco(1)[2]["attributes"] == {"old": pytest.approx(0.1), "wet": pytest.approx(0.9)}
    assert found.select(np.array([True, False, False])).attributes.shape == (1, 2)
    assert found.mask(0).sum() == 12 * 9  # the box, where there is no mask


def test_selection_and_counts() -> None:
    found = sample().select(np.array([2, 0]))
    assert found.scores.tolist() == pytest.approx([0.25, 0.9])
    assert found.masks[1] == sample().masks[0]
    assert sample().counts() == {"red ball": 2, "cat": 1}
    assert not len(sample().select(np.zeros(3, bool)))


def test_nothing_found() -> None:
    empty = Detections.empty(NAMES, (30, 50), masks=True)
    assert empty.to_coco(1) == []
    assert empty.to_yolo() == ""
    assert empty.counts() == {}
    assert empty.masks == ()


def test_parts_must_be_of_as_many_objects() -> None:
    one = np.zeros((1, 4), np.float32), np.zeros(1, int), np.zeros(1, np.float32)
    with pytest.raises(ShapeError, match="1 boxes came with 0 masks"):
        Detections(*one, NAMES, (3, 4), masks=())


def test_supervision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match="pip install supervision"):
        sample().to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    given = sample().to_supervision()
    assert given.mask.shape == (3, 30, 50)
    assert given.mask.dtype == bool
    assert given.data["class_name"].tolist() == ["red ball", "cat", "red ball"]
    empty = Detections.empty(NAMES, (30, 50), masks=True).to_supervision()
    assert empty.mask is None
    assert empty.xyxy.shape == (0, 4)


def panoptic() -> Panoptic:
    segments = np.zeros((20, 30), np.int32)
    segments[:, :10] = 1
    segments[5:15, 12:20] = 2
    segments[2:6, 25:29] = 3
    return Panoptic(
        segments,
        np.array([1, 0, 0]),
        np.array([0.8, 0.5, 0.9], np.float32),
        np.array([False, True, True]),
        NAMES,
    )


def test_panoptic_picture_and_segments() -> None:
    info = panoptic().segments_info()
    assert [each["id"] for each in info] == [1, 2, 3]
    assert info[1]["bbox"] == [12, 5, 8, 10]
    assert info[1]["area"] == 80
    assert [each["isthing"] for each in info] == [False, True, True]
    json.dumps(info)
    big = Panoptic(
        panoptic().segments * 70_000, np.array([], int), np.array([], np.float32), np.array([], bool), NAMES
    )
    red, green, blue = np.moveaxis(big.to_panoptic_png().astype(int), -1, 0)
    assert np.array_equal(red + 256 * green + 256**2 * blue, big.segments)


def test_things_of_a_panoptic_result() -> None:
    found = panoptic().detections()
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.boxes_xyxy[0].tolist() == [25, 2, 29, 6]
    assert np.array_equal(found.mask(1), panoptic().segments == 2)


def test_redrawn_things_lie_on_the_stuff() -> None:
    larger = np.zeros((20, 30), bool)
    larger[5:15, 8:20] = True
    things = panoptic().detections()
    things = Detections(
        things.boxes_xyxy, things.labels, things.scores, NAMES, (20, 30),
        (things.masks[0], encode_mask(larger)),
    )  # fmt: skip
    found = panoptic().with_things(things)
    assert found.is_thing.tolist() == [False, True, True]
    assert np.array_equal(found.segments == 3, larger)
    assert [each["area"] for each in found.segments_info()] == [200 - 20, 16, 120]
