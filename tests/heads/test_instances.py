from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from painted import disc, painted, plain_bank
from support import tiny_part

from ovseg.errors import ConfigError, ShapeError
from ovseg.heads import SegmentationHead
from ovseg.heads.components import find_components, split_touching
from ovseg.heads.instances import InstanceHead
from ovseg.heads.sam_instances import redraw
from ovseg.results import Segmentation
from ovseg.score_map import ScoreMap

HW = (60, 90)


def scene() -> np.ndarray:
    """Two touching discs and a lone one of class 1, a rectangle of class 2, on class 0."""
    labels = np.zeros(HW, int)
    labels[disc(HW, (20, 20), 12)] = 1
    labels[disc(HW, (42, 24), 12)] = 1
    labels[disc(HW, (75, 45), 9)] = 1
    labels[45:55, 5:50] = 2
    return labels


def instances(m: ScoreMap, things: tuple | None = None, **options):
    return InstanceHead(**options)(SegmentationHead()(m), things)


def test_touching_objects_come_apart() -> None:
    bank = plain_bank(3, background=frozenset({0}))
    found = instances(painted(scene(), bank))[0]
    assert sorted(found.labels.tolist()) == [1, 1, 1, 2]
    assert len(instances(painted(scene(), bank), prominence=1.0)[0]) == 3
    for middle in ((20, 20), (42, 24), (75, 45)):
        number = found.segments[middle[1], middle[0]]
        alone = disc(HW, middle, 9 if middle[0] == 75 else 12)
        part = found.segments == number
        assert (part & alone).sum() / (part | alone).sum() > 0.9
    assert (found.segments[scene() == 0] == 0).all()
    assert found.scores.tolist() == pytest.approx([painted(scene(), bank).labels()[1][0, 20, 20].item()] * 4)


@pytest.mark.parametrize("scale", [1, 3, 9])
def test_splitting_does_not_depend_on_the_scale(scale: int) -> None:
    hw = (40 * scale, 60 * scale)
    two = disc(hw, (18 * scale, 20 * scale), 12 * scale) | disc(hw, (40 * scale, 20 * scale), 12 * scale)
    one = disc(hw, (25 * scale, 20 * scale), 12 * scale) | disc(hw, (33 * scale, 20 * scale), 12 * scale)
    probability = np.ones(hw, np.float32)
    assert len(find_components(two, probability, prominence=0.4)) == 2
    assert len(find_components(one, probability, prominence=0.4)) == 1


def test_parts_cover_the_component() -> None:
    rng = np.random.default_rng(0)
    relief = rng.random((37, 53)).astype(np.float32)
    mask = np.ones((37, 53), bool)
    parts = split_touching(mask, relief, prominence=0.05)
    assert set(np.unique(parts)) == set(range(1, parts.max() + 1))
    assert parts.max() > 3
    assert split_touching(mask, relief, prominence=1.0).max() == 1
    flat = split_touching(mask, np.ones_like(relief), prominence=0.1)
    assert (flat == 1).all()


def test_one_branched_thing_stays_one() -> None:
    cross = np.zeros((60, 80), bool)
    cross[25:35, 5:75] = cross[5:55, 35:45] = True
    cross[5:15, 25:55] = cross[45:55, 25:55] = True  # an I with arms: thick ends, thin middles
    probability = cross.astype(np.float32)
    assert len(find_components(cross, probability, prominence=0.2, convexity=0.0)) > 1
    assert len(find_components(cross, probability, prominence=0.2, convexity=1.0)) == 1


def test_things_much_less_sure_than_the_surest_are_left_out() -> None:
    bank = plain_bank(3, background=frozenset({0}))
    labels = np.zeros((60, 80), np.uint8)
    labels[5:25, 5:35], labels[30:50, 40:70] = 1, 2
    confidence = np.where(labels == 2, 0.4, 1.0).astype(np.float32)
    decided = Segmentation(labels, bank.names, confidence, background=bank.background)
    assert InstanceHead(min_share=0.3)([decided])[0].labels.tolist() == [1, 2]
    assert InstanceHead(min_share=0.5)([decided])[0].labels.tolist() == [1]
    stuff = InstanceHead(min_share=0.5)([decided], [True, True, False])[0]
    assert stuff.labels.tolist() == [1, 2]


def test_stuff_is_one_segment_for_a_class() -> None:
    bank = plain_bank(3, background=frozenset({0}))
    found = instances(painted(scene(), bank), (None, False, True))[0]
    assert sorted(zip(found.labels.tolist(), found.is_thing.tolist(), strict=True)) == [(1, False), (2, True)]
    assert len(found.detections()) == 1
    with pytest.raises(ShapeError, match="2 thing flags"):
        instances(painted(scene(), bank), (True, False))


def test_small_and_unsure_segments_are_left_out() -> None:
    bank = plain_bank(3, background=frozenset({0}))
    lone = (scene() == 1).sum() / scene().size / 4  # the small disc is less than a third
    assert sorted(instances(painted(scene(), bank), min_area=lone)[0].labels.tolist()) == [1, 1, 2]
    assert not len(instances(painted(scene(), bank), min_score=0.99)[0])


def test_nothing_there() -> None:
    bank = plain_bank(3, background=frozenset({0}))
    found = instances(painted(np.zeros(HW, int), bank))[0]
    assert not len(found)
    assert not len(found.detections())
    assert found.segments_info() == []
    assert not found.to_panoptic_png().any()


def test_all_void() -> None:
    m = painted(scene(), plain_bank(3))
    assert not len(InstanceHead()(SegmentationHead(threshold=1.0)(m))[0])


def test_one_class_without_background_is_the_whole_picture() -> None:
    found = instances(painted(np.zeros(HW, int), plain_bank(1)))[0]
    assert len(found) == 1
    assert (found.segments == 1).all()


def test_a_thousand_classes() -> None:
    labels = np.random.default_rng(0).integers(0, 1000, (6, 9)).repeat(10, 0).repeat(10, 1)
    found = instances(painted(labels, plain_bank(1000), temperature=20.0))[0]
    assert set(found.labels.tolist()) == set(labels.ravel().tolist())
    assert np.array_equal(found.labels[found.segments - 1], labels)


def test_permuting_classes_permutes_the_answer() -> None:
    m = painted(scene(), plain_bank(3), noise=0.2)
    order = np.array([2, 0, 1])
    names = tuple(m.bank.names[k] for k in np.argsort(order))
    bank = replace(m.bank, names=names, class_of_query=torch.from_numpy(order))
    ours, theirs = instances(m)[0], instances(replace(m, bank=bank))[0]
    assert np.array_equal(theirs.segments, ours.segments)
    assert np.array_equal(theirs.labels, order[ours.labels])


def test_an_image_does_not_depend_on_its_batch() -> None:
    one, two = painted(scene(), plain_bank(3), noise=0.3), painted(scene()[::-1].copy(), plain_bank(3))
    both = replace(one, cosine=torch.cat([one.cosine, two.cosine]))
    assert np.array_equal(instances(both)[0].segments, instances(one)[0].segments)


@pytest.mark.parametrize("options", [dict(min_area=-0.1), dict(prominence=1.5), dict(min_score=2.0)])
def test_bad_options(options: dict) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        InstanceHead(**options)


class OneMask:
    """A SAM whose mask is a given picture."""

    def __init__(self, picture: np.ndarray, trust: float) -> None:
        self.picture, self.trust, self.boxes = picture, trust, []

    def decode(self, embedded, index, *, boxes, multimask):
        assert not multimask
        self.boxes.append(boxes)
        return torch.zeros(len(boxes), 1, 2, 2), torch.full((len(boxes), 1), self.trust)

    def upscale(self, low_res, embedded):
        return torch.from_numpy(self.picture * 2.0 - 1).float().expand(len(low_res), 1, -1, -1)


def test_sam_redraws_what_it_trusts() -> None:
    bank = plain_bank(3, background=frozenset({0}))
    found = instances(painted(scene(), bank), (None, True, False))[0].detections()
    at = int(np.flatnonzero([found.mask(k)[20, 20] for k in range(len(found))])[0])
    sam = tiny_part("sam")
    embedded = sam.embed([np.zeros((*HW, 3), np.uint8)])
    square = np.zeros(HW, bool)
    square[9:31, 9:31] = True
    trusting = OneMask(square, 0.9)
    drawn = redraw(found, trusting, embedded)
    assert np.array_equal(drawn.mask(at), square)
    assert drawn.boxes_xyxy[at].tolist() == [9, 9, 31, 31]
    others = [k for k in range(len(found)) if k != at]
    assert all(drawn.masks[k] == found.masks[k] for k in others)  # the square does not overlap them enough
    asked = torch.cat(trusting.boxes)[at] / (embedded.input_hw[1] / HW[1])
    torch.testing.assert_close(asked, torch.tensor([8.0, 8.0, 32.0, 32.0]), atol=1.5, rtol=0)
    assert redraw(found, OneMask(square, 0.5), embedded).masks == found.masks
    assert len(redraw(found.select(np.zeros(len(found), bool)), OneMask(square, 0.9), embedded)) == 0


def test_a_real_sam_answers() -> None:
    bank = plain_bank(3, background=frozenset({0}))
    found = instances(painted(scene(), bank))[0].detections()
    sam = tiny_part("sam")
    embedded = sam.embed([np.random.default_rng(0).integers(0, 255, (*HW, 3)).astype(np.uint8)])
    drawn = redraw(found, sam, embedded, min_iou=0.0, min_overlap=0.0)
    assert len(drawn.masks) == len(found)
    with pytest.raises(ShapeError, match="SAM has seen"):
        redraw(found, sam, sam.embed([np.zeros((30, 30, 3), np.uint8)]))
