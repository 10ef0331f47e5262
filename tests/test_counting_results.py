from __future__ import annotations

import json

import numpy as np
import pytest

from ovseg.counting_results import ClassCount, Counts, nothing_found
from ovseg.density import resize_density
from ovseg.errors import ShapeError


def density(height: int = 13, width: int = 21, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)).astype(np.float32) ** 4


@pytest.mark.parametrize("size_hw", [(5, 8), (13, 21), (29, 47), (1, 1), (40, 3)])
def test_resizing_keeps_the_sum(size_hw: tuple[int, int]) -> None:
    resized = resize_density(density(), size_hw)
    assert resized.shape == size_hw
    assert (resized >= 0).all()
    assert resized.sum() == pytest.approx(density().sum(), rel=1e-5)


def test_resizing_keeps_objects_where_they_are() -> None:
    one = np.zeros((4, 6), np.float32)
    one[1, 4] = 1
    finer = resize_density(one, (8, 18))
    assert finer[2:4, 12:15].sum() == pytest.approx(1)
    np.testing.assert_allclose(resize_density(finer, (4, 6)), one, atol=1e-6)
    coarser = resize_density(one, (2, 4))  # columns of 1.5 cells: the fifth lies half in the third
    np.testing.assert_allclose(coarser, [[0, 0, 0.5, 0.5], [0, 0, 0, 0]], atol=1e-6)


def test_no_cells_are_refused() -> None:
    with pytest.raises(ShapeError, match="at least one cell"):
        resize_density(density(4, 6), (0, 3))


def counts() -> Counts:
    dots = np.zeros((3, 5), np.float32)
    dots[0, 1] = dots[2, 4] = 1
    points = np.array([[12.5, 4.0], [36.0, 20.0]], np.float32)
    return Counts((ClassCount("猫", 0, 2.0, dots, points, 0.5), nothing_found("dog", 1, (3, 5))), (24, 40))


def test_counts_are_json_ready() -> None:
    read = json.loads(json.dumps(counts().to_dict(density=True)))
    assert read["image_hw"] == [24, 40]
    assert read["total"] == 2
    assert read["classes"][0]["points_xy"] == [[12.5, 4.0], [36.0, 20.0]]
    assert np.sum(read["classes"][0]["density"]) == pytest.approx(2)
    assert read["classes"][1]["number"] == 0
    assert "density" not in counts().to_dict()["classes"][0]


def test_counts_by_name() -> None:
    found = counts()
    assert found["猫"].number == 2
    assert found.numbers() == {"猫": 2.0}
    assert found["猫"].picture((24, 40)).sum() == pytest.approx(2)
    with pytest.raises(KeyError, match="counted: 猫, dog"):
        found["cow"]


def test_a_density_that_sums_to_something_else_is_refused() -> None:
    with pytest.raises(ShapeError, match="sums to 2, its number is 3"):
        ClassCount("cat", 0, 3.0, np.full((1, 2), 1.0, np.float32), np.zeros((0, 2), np.float32))
