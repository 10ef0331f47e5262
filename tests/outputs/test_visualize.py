"""Colours and pictures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from ovseg.errors import ShapeError
from ovseg.outputs import visualize
from ovseg.outputs.palette import _DEFICIENCIES, BACKGROUND, _linear, _linear_to_oklab, class_colors, oklab
from ovseg.outputs.visualize import boundary, entries, legend_panel, overlay, segmentation_colors
from ovseg.results import Segmentation

WORDS = [
    f"{a} {b}"
    for a in ("red", "old", "tall", "wet", "far")
    for b in ("dog", "car", "tree", "cup", "猫", "sky")
]


def gaps(colors: list, space=oklab) -> float:
    lab = space(np.array(colors, dtype=np.uint8))
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(lab, 2))


def result(labels: np.ndarray, names: tuple[str, ...], **options) -> Segmentation:
    return Segmentation(labels, names, np.ones(labels.shape, np.float32), **options)


@pytest.fixture
def halves() -> Segmentation:
    """Class 0 on the left, 2 on the right, 4 rows of void below."""
    labels = np.zeros((60, 90), np.int64)
    labels[:, 50:] = 2
    labels[56:] = 255
    return result(labels, ("cat", "dog", "grass"))


def test_colour_of_a_name_does_not_depend_on_the_vocabulary() -> None:
    alone = {name: class_colors([name])[0] for name in WORDS}
    assert class_colors([" CAT "]) == class_colors(["cat"])
    for pair in itertools.combinations(WORDS[:12], 2):
        first, second = class_colors(pair)
        assert first == alone[pair[0]]
        assert second == alone[pair[1]] or alone[pair[0]] == alone[pair[1]]
    assert len(set(alone.values())) > 10


@pytest.mark.parametrize("count", [2, 7, 24, 30])
@pytest.mark.parametrize("scheme", ["vivid", "colorblind"])
def test_colours_differ_within_a_vocabulary(count: int, scheme: str) -> None:
    colors = class_colors(WORDS[:count], scheme=scheme)
    assert len(set(colors)) == count
    assert gaps(colors) > 0.035


def test_many_classes_have_as_many_colours() -> None:
    assert len(set(class_colors([f"class {number}" for number in range(800)]))) == 800


def test_colorblind_scheme_is_safer() -> None:
    """The least distance over every kind of sight, of all twelve first colours."""
    names = WORDS[:12]

    def worst(scheme: str) -> float:
        colors = class_colors(names, scheme=scheme)
        seen = [
            lambda rgb, kind=kind: _linear_to_oklab((_linear(rgb) @ kind.T).clip(0, 1))
            for kind in _DEFICIENCIES
        ]
        return min(gaps(colors, space) for space in (oklab, *seen))

    assert worst("colorblind") > 1.5 * worst("vivid")
    assert worst("colorblind") > 0.08


def test_given_colours_win_and_background_is_grey() -> None:
    taken = class_colors(["dog"])[0]
    colors = class_colors(["cat", "dog", "wall"], background={2}, given=[taken, None, None])
    assert colors[0] == taken
    assert colors[1] != taken
    assert colors[2] == BACKGROUND


def test_overlay_tints_classes_and_leaves_void(halves: Segmentation) -> None:
    image = np.full((60, 90, 3), 100, np.uint8)
    colors = segmentation_colors(halves)
    picture = np.array(overlay(image, halves, opacity=0.5, legend=False, boundaries=False)).astype(int)
    assert picture.shape == (60, 90, 3)
    assert np.abs(picture[:56, :50] - (100 + np.array(colors[0])) / 2).max() <= 1.5
    assert np.abs(picture[:56, 50:] - (100 + np.array(colors[2])) / 2).max() <= 1.5
    assert (picture[56:] == 100).all()
    assert (np.array(overlay(image, halves, opacity=0.0, legend=False, boundaries=False)) == image).all()


def test_background_is_tinted_less(halves: Segmentation) -> None:
    image = np.zeros((60, 90, 3), np.uint8)
    colors = ((200, 200, 200), None, None)
    plain = result(halves.labels, halves.names, colors=colors)
    muted = result(halves.labels, halves.names, colors=colors, background=frozenset({0}))
    strong = np.array(overlay(image, plain, legend=False))[20, 20].sum()
    assert np.array(overlay(image, muted, legend=False))[20, 20].sum() == pytest.approx(strong / 3, rel=0.05)


def test_boundaries_lie_between_classes(halves: Segmentation) -> None:
    edge = boundary(halves.labels, 2)
    assert edge[:50, 48:52].all()
    assert not edge[:50, :48].any()
    assert not edge[:50, 52:].any()
    assert not boundary(np.zeros((5, 7), int)).any()
    assert boundary(np.array([[1], [2]])).all()


def test_the_picture_keeps_its_place_and_size(halves: Segmentation) -> None:
    image = np.random.default_rng(0).integers(0, 255, (60, 90, 3)).astype(np.uint8)
    alone = overlay(image, halves, legend=False)
    both = overlay(image, halves)
    assert both.width > 90
    assert (np.array(both)[:60, :90] == np.array(alone)).all()


def test_legend_lists_what_is_found_largest_first(halves: Segmentation) -> None:
    found = entries(halves, segmentation_colors(halves))
    assert [each.name for each in found] == ["cat", "grass", "(no class)"]
    assert sum(each.share for each in found) == pytest.approx(1)


def test_legend_shows_the_colours(halves: Segmentation) -> None:
    colors = segmentation_colors(halves)
    panel = np.array(legend_panel(entries(halves, colors), 20))
    for color, present in ((colors[0], True), (colors[1], False), (colors[2], True)):
        assert (panel == color).all(-1).any() == present


@pytest.mark.parametrize("shape", [(50, 50), (8, 160), (160, 8), (9, 9), (700, 300), (300, 2000)])
@pytest.mark.parametrize("count", [1, 3, 90])
def test_any_size_and_number_of_classes(shape: tuple[int, int], count: int) -> None:
    labels = np.arange(shape[0] * shape[1]).reshape(shape) % count
    picture = overlay(
        np.zeros((*shape, 3), np.uint8), result(labels, tuple(f"class number {i}" for i in range(count)))
    )
    assert picture.width >= shape[1]
    assert picture.height >= shape[0]
    assert picture.width * picture.height < 30 * max(shape[0] * shape[1], 8000)


def test_long_lists_are_summed_up() -> None:
    found = [visualize.Entry(f"class {i}", (200, 0, 0), 0.01, i) for i in range(100)]
    panel = legend_panel(found, 12, rows=5)
    assert panel.height < 5 * 12 * 2.5 + 20


@pytest.mark.parametrize(
    "name", ["猫", "🙂", "собака", "كلب", "कुत्ता", "x" * 300, "line\nbreak", "a\u0000b", "é"]
)
def test_names_in_any_script_are_drawn(name: str, halves: Segmentation) -> None:
    named = result(halves.labels, (name, "dog", "grass"))
    panel = np.array(legend_panel(entries(named, segmentation_colors(named)), 16))
    assert (panel < 100).any(), "some text is drawn"
    assert panel.shape[1] < 500


def test_missing_letters_become_the_class_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visualize, "_fallback", lambda size: ())
    assert visualize._writable(visualize.Entry("猫", (0, 0, 0), 0.5, 7), 16)[0] == "class 7"
    assert visualize._writable(visualize.Entry("猫 cat", (0, 0, 0), 0.5, 7), 16)[0] == "class 7 (cat)"
    assert visualize._writable(visualize.Entry("cat", (0, 0, 0), 0.5, 7), 16)[0] == "cat"


def test_more_than_255_classes() -> None:
    labels = np.full((40, 60), 65535, np.int64)
    labels[:20] = 299
    many = result(labels, tuple(f"class {i}" for i in range(300)), void=65535)
    assert isinstance(overlay(np.zeros((40, 60, 3), np.uint8), many), Image.Image)


def test_wrong_sizes_and_opacity_are_refused(halves: Segmentation) -> None:
    with pytest.raises(ShapeError, match="90x60"):
        overlay(np.zeros((90, 60, 3), np.uint8), halves)
    with pytest.raises(ShapeError, match="0 to 1"):
        overlay(np.zeros((60, 90, 3), np.uint8), halves, opacity=55.0)
