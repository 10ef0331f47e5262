from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ovseg.errors import ConfigError, ShapeError
from ovseg.heads.components import find_components
from ovseg.heads.counting import CountingHead, countable_classes
from ovseg.heads.segmentation import SegmentationHead
from ovseg.resampling import Resampling
from ovseg.score_map import ScoreMap
from ovseg.structures import TextBank

GRID, IMAGE = (40, 60), (160, 240)


def discs(
    centres: list[tuple[float, float]], radius: float = 4.0, grid_hw: tuple[int, int] = GRID
) -> np.ndarray:
    """1 inside of any disc (row, column, radius in cells), 0 outside, soft edges."""
    y, x = np.indices(GRID)
    away = np.min([np.hypot(y - row, x - column) for row, column in centres], axis=0)
    return (1 / (1 + np.exp(2 * (away - radius)))).astype(np.float32)


def noise(seed: int = 0, grid_hw: tuple[int, int] = GRID) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.03, grid_hw).astype(np.float32)


def score_map(*classes: np.ndarray, background: bool = True, image_hw: tuple[int, int] = IMAGE) -> ScoreMap:
    """Presence (0 to 1) by class; with a background class, last, that wins below a half."""
    maps = [presence + noise(seed) for seed, presence in enumerate(classes)]
    if background:
        maps.append(np.full_like(maps[0], 0.5))
    cosine = torch.from_numpy(np.stack(maps))[None] * 0.5
    names = tuple(f"class{k}" for k in range(len(maps)))
    embeddings = torch.nn.functional.normalize(torch.ones(len(maps), 8), dim=1)
    behind = frozenset({len(classes)}) if background else frozenset()
    bank = TextBank(embeddings, torch.arange(len(maps)), names, background=behind)
    return ScoreMap(cosine, bank, 20.0, Resampling.bilinear(classes[0].shape, image_hw))


TWELVE = [(6.0 + 13 * row, 7.0 + 15 * column) for row in range(3) for column in range(4)]
NOTHING = np.zeros(GRID, np.float32)


def numbers(map_: ScoreMap, **options: object) -> list[float]:
    return [each.number for each in CountingHead(**options)(map_)[0].classes]


def test_separate_objects_are_counted_where_they_are() -> None:
    (counts,) = CountingHead()(score_map(discs(TWELVE), discs(TWELVE[:1], 2.0)))
    found = counts["class0"]
    assert found.number == 12
    assert found.density.sum() == pytest.approx(12, rel=1e-5)
    places = np.array(TWELVE)[:, ::-1] * 4 + 2  # a cell has 4 px
    nearest = np.hypot(*(found.points_xy[:, None] - places).transpose(2, 0, 1)).min(axis=0)
    assert (nearest < 3).all()
    assert found.uncertainty < 1
    assert counts.image_hw == IMAGE
    assert [each.name for each in counts.classes] == ["class0", "class1"]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_touching_objects_are_split(count: int) -> None:
    row = [(20.0, 8.0 + 7.5 * n) for n in range(count)]
    (counts,) = CountingHead()(score_map(discs(row)))
    assert counts["class0"].number == count
    half_gap = (count - 1) / 2  # one piece or so many objects: that is how unsure it is
    assert counts["class0"].uncertainty == pytest.approx(half_gap, abs=0.3)


def test_dense_packing_is_split() -> None:
    packed = [(4.0 + 8 * row, 4.0 + 8 * column) for row in range(5) for column in range(7)]
    assert numbers(score_map(discs(packed, 4.2)))[0] == pytest.approx(35, abs=2)


def test_one_small_object() -> None:
    assert numbers(score_map(discs([(20.0, 30.0)], 1.5))) == [1]


def test_objects_at_the_border() -> None:
    assert numbers(score_map(discs([(0.0, 0.0), (20.0, 59.0), (39.0, 25.0)]))) == [3]


def test_nothing_there() -> None:
    (counts,) = CountingHead()(score_map(NOTHING, NOTHING))
    assert [each.number for each in counts.classes] == [0, 0]
    assert counts.total == 0
    assert counts.numbers() == {}
    assert counts["class0"].density.shape == counts["class1"].density.shape
    assert counts["class0"].points_xy.shape == (0, 2)


def test_one_thing_that_fills_the_image() -> None:
    assert numbers(score_map(NOTHING + 1)) == [1]


def test_words_that_fit_nothing_anywhere() -> None:
    # No background class: one of the two always wins, and neither is sure.
    unsure = replace(score_map(NOTHING, NOTHING, background=False), temperature=5.0)
    assert numbers(unsure) == [0, 0]


def test_crumbs_are_dropped() -> None:
    crumbs = np.maximum(discs(TWELVE[:4], 5.0), discs([(20.0, 50.0), (30.0, 10.0)], 1.0))
    assert numbers(score_map(crumbs)) == [4]


def test_a_vocabulary_of_one_class() -> None:
    assert numbers(score_map(discs(TWELVE[:5]), background=False)) == [5]
    for flat in (NOTHING, NOTHING + 1):
        assert numbers(score_map(flat, background=False)) == [0]


def test_a_constant_map_is_finite() -> None:
    for background in (False, True):
        constant = score_map(NOTHING, background=background)
        constant = replace(constant, cosine=torch.zeros_like(constant.cosine))
        assert np.isfinite(numbers(constant)).all()


def test_permuting_classes_permutes_the_answer() -> None:
    maps = discs(TWELVE[:3]), discs(TWELVE[5:]), NOTHING
    plain = score_map(*maps)
    order = torch.tensor([3, 1, 0, 2])
    permuted = replace(
        plain,
        bank=replace(plain.bank, class_of_query=order[plain.bank.class_of_query], background=frozenset({2})),
    )
    head = CountingHead()
    before, after = head(plain)[0].classes, head(permuted)[0].classes
    assert [each.number for each in before] == [3, 7, 0]
    assert {each.class_index: each.number for each in after} == {3: 3, 1: 7, 0: 0}


def test_images_of_a_batch_do_not_see_each_other() -> None:
    first, second = score_map(discs(TWELVE)), score_map(discs(TWELVE[:2], 5.0))
    both = replace(first, cosine=torch.cat([first.cosine, second.cosine]))
    alone, together = CountingHead()(second)[0], CountingHead()(both)[1]
    assert alone["class0"].number == together["class0"].number == 2
    np.testing.assert_array_equal(alone["class0"].density, together["class0"].density)


def test_the_size_asked_for_changes_points_alone() -> None:
    map_ = score_map(discs(TWELVE))
    plain, larger = CountingHead()(map_)[0]["class0"], CountingHead()(map_, (480, 480))[0]["class0"]
    assert larger.number == plain.number
    np.testing.assert_allclose(larger.points_xy, plain.points_xy * [2, 3], rtol=1e-5)


@pytest.mark.parametrize("image_hw", [(80, 120), (320, 480), (161, 239)])
def test_the_image_size_does_not_change_the_number(image_hw: tuple[int, int]) -> None:
    assert numbers(score_map(discs(TWELVE), image_hw=image_hw)) == [12]


def test_a_part_of_the_density_holds_the_objects_of_that_part() -> None:
    found = CountingHead()(score_map(discs(TWELVE)))[0]["class0"]
    picture = found.picture(IMAGE)
    assert picture.shape == IMAGE
    assert picture[:, :118].sum() == pytest.approx(6, abs=0.05)
    assert picture[:52].sum() == pytest.approx(4, abs=0.05)


def test_labels_that_were_revised_decide() -> None:
    map_ = score_map(discs(TWELVE))
    (segmentation,) = SegmentationHead()(map_)
    assert CountingHead()(map_, segmentations=[segmentation])[0]["class0"].number == 12
    labels = segmentation.labels.copy()
    labels[:, :118] = 1
    halved = CountingHead()(map_, segmentations=[replace(segmentation, labels=labels)])[0]
    assert halved["class0"].number == 6
    with pytest.raises(ShapeError, match="1 images came with 2"):
        CountingHead()(map_, segmentations=[segmentation] * 2)


def test_thresholds() -> None:
    map_ = score_map(discs(TWELVE))
    assert numbers(map_, threshold=1.0) == [0]
    own = replace(map_, bank=replace(map_.bank, thresholds=(0.5, None)))
    assert numbers(own, threshold=1.0) == [12]


def test_what_is_counted() -> None:
    map_ = score_map(discs(TWELVE), discs(TWELVE[:1]))
    assert countable_classes(map_.bank) == (0, 1)
    assert countable_classes(map_.bank, (None, False, True)) == (0,)
    asked = CountingHead()(map_, classes=[2])[0]
    assert [each.name for each in asked.classes] == ["class2"]
    assert asked.total >= 1
    with pytest.raises(ConfigError, match="asked to count"):
        CountingHead()(map_, classes=[3])
    with pytest.raises(ShapeError, match="2 thing flags"):
        countable_classes(map_.bank, (None, True))
    with pytest.raises(ConfigError, match="prominence"):
        CountingHead(prominence=2.0)


def test_dips_of_the_score_split_what_shape_cannot() -> None:
    square = np.zeros((30, 50), np.float32)
    square[5:25, 5:45] = 0.9
    assert len(find_components(square > 0, square, prominence=0.2)) == 1
    square[:, 22:28] *= 0.3 / 0.9
    two = find_components(square > 0, square, prominence=0.2)
    assert [each.piece for each in two] == [1, 1]


def test_what_is_much_less_sure_than_the_surest_is_not_counted() -> None:
    map_ = score_map(discs(TWELVE[:6]), 0.56 * discs(TWELVE[6:]))
    assert numbers(map_, min_share=0.0) == [6, 6]
    assert numbers(map_, min_share=0.8) == [6, 0]
