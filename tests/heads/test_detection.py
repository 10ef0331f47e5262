from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from painted import disc, painted, plain_bank

from ovseg.detection_results import Detections
from ovseg.errors import ConfigError, ShapeError
from ovseg.heads import SegmentationHead
from ovseg.heads.background import joined, likely_scenes, with_background
from ovseg.heads.detection import DetectionHead, partial_objects, work_hw
from ovseg.resampling import Resampling
from ovseg.score_map import ScoreMap
from ovseg.structures import TextBank

HW = (60, 90)


def scene() -> np.ndarray:
    labels = np.zeros(HW, int)
    labels[disc(HW, (20, 20), 12)] = 1
    labels[disc(HW, (42, 24), 12)] = 1
    labels[disc(HW, (75, 45), 9)] = 1
    labels[45:55, 5:50] = 2
    return labels


def bank(**details) -> TextBank:
    return plain_bank(3, background=frozenset({0}), **details)


def as_set(found: Detections) -> set:
    rows = np.round(np.column_stack([found.boxes_xyxy, found.scores]), 4)
    return {(found.names[k], *row) for k, row in zip(found.labels, rows.tolist(), strict=True)}


def test_boxes_of_painted_objects() -> None:
    found = DetectionHead()(painted(scene(), bank()))[0]
    assert sorted(found.labels.tolist()) == [1, 1, 1, 2]
    assert found.image_hw == HW
    boxes = {tuple(box) for box in found.boxes_xyxy.tolist()}
    assert (5.0, 45.0, 50.0, 55.0) in boxes
    assert (66.0, 36.0, 85.0, 55.0) in boxes
    for index in range(len(found)):
        rows, columns = np.nonzero(found.mask(index))
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert found.boxes_xyxy[index].tolist() == tight
    assert (np.diff(found.scores) <= 0).all()


def test_masks_can_be_left_out() -> None:
    assert DetectionHead(masks=False)(painted(scene(), bank()))[0].masks is None


def test_nothing_of_the_kind() -> None:
    found = DetectionHead()(painted(np.zeros(HW, int), bank()))[0]
    assert not len(found)
    assert found.to_coco(1) == []
    assert found.names == ("class0", "class1", "class2")
    unsure = DetectionHead(threshold=1.0)(painted(scene(), plain_bank(3)))[0]
    assert not len(unsure)


def test_one_class_and_no_background_is_the_whole_picture() -> None:
    found = DetectionHead()(painted(np.zeros(HW, int), plain_bank(1)))[0]
    assert found.boxes_xyxy.tolist() == [[0, 0, 90, 60]]
    assert found.scores.tolist() == [1]


def test_class_thresholds() -> None:
    m = painted(scene(), bank(thresholds=(None, 0.999, None)))
    assert DetectionHead()(m)[0].labels.tolist() == [2]
    assert DetectionHead(rivals=0.5)(m)[0].labels.tolist() == [2]


def test_stuff_has_no_boxes() -> None:
    m = painted(scene(), bank())
    assert DetectionHead()(m, things=(None, False, None))[0].labels.tolist() == [2]
    with pytest.raises(ShapeError, match="thing flags"):
        DetectionHead()(m, things=(True,))


def test_rivals_let_objects_overlap() -> None:
    m = painted(scene(), plain_bank(4, background=frozenset({0})))
    both = m.cosine.clone()
    both[:, 3] = m.cosine[:, 2] - 0.05  # class 3 is nearly as likely where class 2 is best
    m = replace(m, cosine=both)
    assert 3 not in DetectionHead()(m)[0].labels
    found = DetectionHead(rivals=0.7, min_share=0.0)(m)[0]
    assert found.boxes_xyxy[found.labels == 3].tolist() == [[5, 45, 50, 55]]
    assert as_set(DetectionHead()(m)[0]) < as_set(found)


def test_what_segmentation_has_decided_is_taken_over() -> None:
    m = painted(scene(), bank(), noise=0.2)
    decided = SegmentationHead()(m)
    assert as_set(DetectionHead()(m, segmentations=decided)[0]) == as_set(DetectionHead()(m)[0])
    decided[0].labels[decided[0].labels == 2] = 0
    assert 2 not in DetectionHead()(m, segmentations=decided)[0].labels


@pytest.mark.parametrize("rivals", [1.0, 0.5])
def test_permuting_classes_permutes_the_answer(rivals: float) -> None:
    m = painted(scene(), plain_bank(3), noise=0.3)
    order = torch.tensor([2, 0, 1])
    names = tuple(m.bank.names[k] for k in order.argsort())
    permuted = replace(m, bank=replace(m.bank, names=names, class_of_query=order))
    head = DetectionHead(rivals=rivals, min_area=0.0005)
    ours = as_set(head(m)[0])
    assert len(ours) > 3
    assert as_set(head(permuted)[0]) == ours


def test_an_image_does_not_depend_on_its_batch() -> None:
    m = painted(scene(), bank(), noise=0.3)
    other = painted(scene()[::-1].copy(), bank())
    both = DetectionHead()(replace(m, cosine=torch.cat([other.cosine, m.cosine])))
    assert as_set(both[1]) == as_set(DetectionHead()(m)[0])


def test_a_thousand_classes() -> None:
    labels = np.random.default_rng(0).integers(0, 999, (6, 9)).repeat(10, 0).repeat(10, 1) + 1
    labels[20:40] = 0
    m = painted(labels, plain_bank(1000, background=frozenset({0})), temperature=20.0)
    found = DetectionHead(rivals=0.9)(m)[0]
    assert set(found.labels.tolist()) == set(labels.ravel().tolist()) - {0}


def test_large_images_are_searched_on_a_smaller_picture() -> None:
    assert work_hw((1000, 1500)) == (418, 627)
    assert work_hw((224, 288)) == (224, 288)
    assert work_hw((1, 900_000)) == (1, 491520) or min(work_hw((1, 900_000))) == 1
    m = painted(scene(), bank())
    large = ScoreMap(m.cosine, m.bank, 4.0, Resampling.bilinear(HW, (720, 1080)))
    found = DetectionHead()(large)[0]
    assert found.image_hw == (720, 1080)
    box = found.boxes_xyxy[found.labels == 2][0]
    np.testing.assert_allclose(box, np.array([5, 45, 50, 55]) * 12, atol=9)
    mask = found.mask(int(np.flatnonzero(found.labels == 2)[0]))
    assert mask.shape == (720, 1080)
    assert mask.sum() == pytest.approx(450 * 144, rel=0.05)


def test_parts_of_an_object_are_suppressed() -> None:
    boxes = np.array([[0, 0, 40, 40], [2, 2, 12, 12], [35, 35, 55, 50], [2, 2, 12, 12]], np.float32)
    scores = np.array([0.9, 0.5, 0.4, 0.3], np.float32)
    labels = np.array([0, 0, 0, 1])
    assert partial_objects(boxes, scores, labels, 0.9).tolist() == [False, True, False, False]
    surer = np.array([0.4, 0.9, 0.4, 0.3], np.float32)
    assert not partial_objects(boxes, surer, labels, 0.9).any()
    assert partial_objects(boxes[:0], scores[:0], labels[:0], 0.9).shape == (0,)


def ring() -> np.ndarray:
    labels = np.zeros(HW, int)
    labels[5:55, 5:85] = 1
    labels[15:45, 15:75] = 0
    labels[25:35, 40:50] = 1
    return labels


def test_suppression_in_the_head() -> None:
    """A square inside a ring of its class: small overlap over union, all of it inside."""
    m = painted(ring(), plain_bank(2, background=frozenset({0})))
    assert len(DetectionHead(part_share=1.0, scene_area=1.0)(m)[0]) == 2
    assert DetectionHead(scene_area=1.0)(m)[0].boxes_xyxy.tolist() == [[5, 5, 85, 55]]


def test_a_box_over_the_scene_falls_to_the_background() -> None:
    labels = ring()
    labels[8:52, 8:82] = 0  # a thin frame: its box is mostly background
    m = painted(labels, plain_bank(2, background=frozenset({0})))
    assert len(DetectionHead(scene_area=1.0)(m)[0]) == 1
    assert not len(DetectionHead()(m)[0])
    solid = painted(np.where(np.arange(60)[:, None] > 2, 1, 0) * np.ones(HW, int), m.bank)
    assert len(DetectionHead()(solid)[0]) == 1


def test_few_detections() -> None:
    found = DetectionHead()(painted(scene(), bank(), noise=0.2))[0]
    few = DetectionHead(max_detections=2)(painted(scene(), bank(), noise=0.0))[0]
    assert len(few) == 2
    assert len(found) > 2


def test_background_words_join_as_one_class() -> None:
    asked = TextBank(torch.eye(4)[:2], torch.arange(2), ("cat", "Sky"), thresholds=(0.3, None))
    words = TextBank(torch.eye(4)[1:], torch.arange(3), ("sky", "wall", "floor"))
    joined = with_background(asked, words)
    assert joined.names == ("cat", "Sky", "background")
    assert joined.background == {2}
    assert joined.thresholds == (0.3, None, None)
    assert joined.class_of_query.tolist() == [0, 1, 2, 2]
    assert torch.equal(joined.embeddings[2:], torch.eye(4)[2:])
    again = with_background(joined, TextBank(torch.eye(4)[:1], torch.arange(1), ("road",)))
    assert len(set(again.names)) == 4
    assert with_background(asked, TextBank(torch.eye(4)[1:2], torch.arange(1), ("sky",))) is asked
    with pytest.raises(ShapeError, match="4 dimensions"):
        with_background(asked, TextBank(torch.eye(3), torch.arange(3), ("a", "b", "c")))


def test_background_words_make_nothing_found_possible() -> None:
    """An image like the background words and unlike the class."""
    asked = TextBank(torch.eye(4)[:1], torch.arange(1), ("cat",))
    words = TextBank(torch.eye(4)[2:], torch.arange(2), ("sky", "wall"))
    grid = torch.eye(4)[3][None, :, None, None].expand(1, 4, 6, 9) + 0.05
    for bank_, count in ((asked, 1), (with_background(asked, words), 0)):
        cosine = torch.einsum("bdhw,qd->bqhw", grid, bank_.embeddings)
        m = ScoreMap(cosine, bank_, 40.0, Resampling.bilinear((6, 9), (48, 72)))
        assert len(DetectionHead()(m)[0]) == count


def test_likely_scenes() -> None:
    scenes = TextBank(torch.eye(5), torch.tensor([0, 1, 1, 2, 3]), ("beach", "street", "kitchen", "forest"))
    image = torch.tensor([0.1, 0.0, 0.9, 0.3, 0.2])
    found = likely_scenes(image, scenes, 2)
    assert found.names == ("street", "kitchen")
    assert torch.equal(found.embeddings, torch.eye(5)[[1, 2, 3]])
    assert found.class_of_query.tolist() == [0, 0, 1]
    assert likely_scenes(image, scenes, 9).names == scenes.names
    both = joined(scenes, found)
    assert both.names == (*scenes.names, "street", "kitchen")
    assert both.class_of_query.tolist() == [0, 1, 1, 2, 3, 4, 4, 5]


@pytest.mark.parametrize("options", [dict(threshold=1.2), dict(nms_iou=-1.0)])
def test_bad_options(options: dict) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        DetectionHead(**options)


def test_at_least_one_detection() -> None:
    with pytest.raises(ConfigError, match="max_detections"):
        DetectionHead(max_detections=0)
