"""The bilateral solver against dense algebra on a small picture, and what FOUND makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from support import random_image

from ovseg.training.bilateral import BilateralGrid, colour_mask, largest_label_dropped, solve


def two_tone(height: int, width: int, edge: int) -> np.ndarray:
    image = np.full((height, width, 3), (200, 60, 60), np.uint8)
    image[:, edge:] = (40, 60, 200)
    return image


def dense_blur(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells by their coordinates in a dictionary, neighbours by comparison."""
    cells: dict[tuple, int] = {}
    of_pixel = []
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            r, g, b = (float(v) for v in image[y, x])
            luma = 0.299 * r + 0.587 * g + 0.114 * b
            blue = -0.168736 * r - 0.331264 * g + 0.5 * b + 128
            red = 0.5 * r - 0.418688 * g - 0.081312 * b + 128
            place = (x // 16, y // 16, int(luma / 16), int(blue / 8), int(red / 8))
            of_pixel.append(cells.setdefault(place, len(cells)))
    blur = np.zeros((len(cells), len(cells)))
    for one, i in cells.items():
        for other, j in cells.items():
            steps = sorted(abs(a - b) for a, b in zip(one, other, strict=True))
            blur[i, j] = 10 if i == j else float(steps == [0, 0, 0, 0, 1])
    return blur, np.array(of_pixel)


def test_solution_is_that_of_the_linear_system() -> None:
    image = (random_image(24, 40) // 64 * 64).astype(np.uint8)
    target = np.random.default_rng(3).random((24, 40))
    blur, of_pixel = dense_blur(image)
    splat = np.zeros((len(blur), target.size))
    splat[of_pixel, np.arange(target.size)] = 1
    mass, scale = splat.sum(1), np.ones(len(blur))
    for _ in range(10):
        scale = np.sqrt(scale * mass / (blur @ scale))
    mass = scale * (blur @ scale)
    system = 256 * (np.diag(mass) - scale[:, None] * blur * scale) + np.diag(0.999 * splat.sum(1))
    expected = np.linalg.solve(system, 0.999 * splat @ target.ravel())[of_pixel].reshape(target.shape)
    ours = solve(BilateralGrid(image), target, iterations=2000, tolerance=1e-12)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert np.ptp(expected) > 0.01


def test_a_mask_moves_to_the_colours_edge() -> None:
    image = two_tone(64, 120, 70)
    coarse = np.zeros((8, 15), np.float32)
    coarse[:, :7] = 1  # ends at 56 of 120 pixels: 14 short of the edge
    solved, trusted = colour_mask(coarse, image)
    assert trusted
    assert (solved == (np.arange(120) < 70)).mean() > 0.99


def test_dominant_objects_are_kept_and_the_published_code_loses_them() -> None:
    image = two_tone(64, 120, 100)
    coarse = np.zeros((8, 15), np.float32)
    coarse[:, :12] = 1
    solved, trusted = colour_mask(coarse, image)
    assert trusted
    assert solved[:, :90].all()
    published, trusted = colour_mask(coarse, image, as_published=True)
    assert not trusted
    assert not published[:, :90].any()
    assert published[:, 105:].all()


def test_largest_label_is_dropped() -> None:
    mask = np.zeros((6, 9), bool)
    mask[0, 0] = mask[2:4, 3:5] = True
    assert (largest_label_dropped(mask) == mask).all()
    assert (largest_label_dropped(~mask) == mask).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("size_hw", [(37, 200), (16, 16)])
def test_flat_pictures(value: float, size_hw: tuple[int, int]) -> None:
    flat = np.full((*size_hw, 3), 128, np.uint8)
    solved, trusted = colour_mask(np.full((3, 5), value, np.float32), flat)
    assert solved.shape == size_hw
    assert (solved == bool(value)).all()
    assert trusted == bool(value)  # nothing overlaps with nothing


def test_a_wide_picture_has_no_neighbours_across_its_border() -> None:
    """Coordinates past 254 ran into the next axis in the published code."""
    image = np.zeros((16, 16 * 300, 3), np.uint8)
    grid = BilateralGrid(image)
    assert grid.blur.shape == (300, 300)
    assert grid.blur.sum() == 300 * 10 + 2 * 299
