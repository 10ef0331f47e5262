from __future__ import annotations

import pytest
import torch

from ovseg.errors import ConfigError
from ovseg.training.count_augment import CountAugmentation, resize

PLAIN = {"jitter": 0.0, "blur": 0.0, "noise": 0.0}


def picture_with_dots(height: int = 60, width: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    """White squares of 4 px on black, a dot in the middle of each."""
    image = torch.zeros(3, height, width)
    points = torch.tensor([[10.0, 12.0], [50.0, 30.0], [80.0, 50.0], [30.0, 44.0]])
    for x, y in points.int().tolist():
        image[:, y - 2 : y + 2, x - 2 : x + 2] = 1
    return image, points


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 0.8), (1.0, 1.9), (3.0, 3.0)])
def test_dots_stay_on_their_objects(scale: tuple[float, float]) -> None:
    image, points = picture_with_dots()
    augment = CountAugmentation(crop_hw=(40, 48), scale=scale, **PLAIN)
    seen = 0
    for seed in range(12):
        crop, dots = augment(image, points, torch.Generator().manual_seed(seed))
        assert crop.shape == (3, 40, 48)
        for x, y in dots.tolist():
            if 2 < x < 46 and 2 < y < 38:  # a dot at the border may lie between two pixels
                seen += 1
                around = crop[0, int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2]
                assert around.max() > 0.6
    assert seen > 8


def test_flip_moves_dots_with_the_picture() -> None:
    image, points = picture_with_dots()
    same = CountAugmentation(crop_hw=(60, 90), scale=(1.0, 1.0), flip=0.0, **PLAIN)(image, points)
    torch.testing.assert_close(same, (image, points))
    flipped, dots = CountAugmentation(crop_hw=(60, 90), scale=(1.0, 1.0), flip=1.0, **PLAIN)(image, points)
    torch.testing.assert_close(flipped, image.flip(2))
    assert dots[0].tolist() == [80.0, 12.0]


def test_every_dot_is_in_one_of_the_crops_of_a_cut() -> None:
    image, points = picture_with_dots(40, 96)
    points = points[points[:, 1] < 40]
    augment = CountAugmentation(crop_hw=(40, 48), scale=(1.0, 1.0), flip=0.0, **PLAIN)
    left = augment(image[:, :, :48], points)[1]
    right = augment(image[:, :, 48:], points - torch.tensor([48.0, 0.0]))[1]
    assert len(left) + len(right) == len(points)


def test_colours_change_and_stay_in_range() -> None:
    image, points = picture_with_dots()
    image = 0.2 + 0.6 * image
    for change in ("jitter", "blur", "noise"):
        options = PLAIN | {change: 1.0}
        augment = CountAugmentation(crop_hw=(60, 90), scale=(1.0, 1.0), flip=0.0, noise_share=0.05, **options)
        changed, dots = augment(image, points, torch.Generator().manual_seed(1))
        assert not torch.allclose(changed, image), change
        assert 0 <= changed.min() <= changed.max() <= 1
        torch.testing.assert_close(dots, points)


def test_seeded_and_without_dots() -> None:
    image, _ = picture_with_dots()
    none = torch.zeros(0, 2)
    augment = CountAugmentation(crop_hw=(32, 24))
    first, dots = augment(image, none, torch.Generator().manual_seed(5))
    torch.testing.assert_close(augment(image, none, torch.Generator().manual_seed(5))[0], first)
    assert dots.shape == (0, 2)
    assert not torch.equal(augment(image, none, torch.Generator().manual_seed(6))[0], first)


def test_resize_scales_dots() -> None:
    image, points = picture_with_dots()
    larger, dots = resize(image, points, (120, 270))
    assert larger.shape == (3, 120, 270)
    torch.testing.assert_close(dots, points * torch.tensor([3.0, 2.0]))
    assert 0 <= larger.min() <= larger.max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_hw": (0, 5)}, "at least 1 pixel"),
        ({"scale": (0.0, 1.0)}, "0 < least"),
        ({"scale": (2.0, 1.0)}, "0 < least"),
        ({"flip": 1.5}, "flip is a share"),
    ],
)
def test_unusable_settings(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CountAugmentation(**({"crop_hw": (8, 8)} | options))
