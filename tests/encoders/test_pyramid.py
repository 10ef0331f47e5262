"""CLIP's towers as backbones, against open_clip's own forward."""

from __future__ import annotations

import open_clip
import pytest
import torch

from ovseg.encoders.pyramid import STRIDES, ClipPyramid, ResNetPyramid, VitPyramid, build_pyramid
from ovseg.errors import CheckpointError, ConfigError, ShapeError


def resnet() -> ResNetPyramid:
    torch.manual_seed(3)
    visual = open_clip.modified_resnet.ModifiedResNet([1, 1, 1, 1], 24, 4, image_size=64, width=8)
    for module in visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # the library starts residual branches at zero
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    built = build_pyramid(visual)
    assert isinstance(built, ResNetPyramid)
    return built.eval()


def vit(*, patch: int = 16, layers: int = 6, **options: object) -> VitPyramid:
    torch.manual_seed(4)
    visual = open_clip.transformer.VisionTransformer(
        image_size=4 * patch, patch_size=patch, width=32, layers=layers, heads=4, mlp_ratio=2.0, output_dim=24
    )
    built = build_pyramid(visual, **options)
    assert isinstance(built, VitPyramid)
    return built.eval()


@pytest.fixture(params=[resnet, vit])
def pyramid(request: pytest.FixtureRequest) -> ClipPyramid:
    return request.param()


@torch.no_grad()
def test_image_vector_is_the_librarys(pyramid: ClipPyramid) -> None:
    pixels = torch.randn(2, 3, 64, 64)
    found = pyramid(pixels)
    torch.testing.assert_close(found.image, pyramid.visual(pixels), atol=1e-5, rtol=0)
    assert found.image.std() > 0.01


@torch.no_grad()
def test_levels_of_a_tall_image(pyramid: ClipPyramid) -> None:
    found = pyramid(torch.randn(1, 3, 128, 96))
    shapes = [tuple(level.shape[1:]) for level in found.levels]
    assert shapes == [(c, 128 // s, 96 // s) for c, s in zip(pyramid.channels, STRIDES, strict=True)]
    assert found.grid.shape[2:] == found.levels[pyramid.dense_level].shape[2:]
    assert found.context.shape == (1, 1 + found.grid[0, 0].numel(), 24)
    torch.testing.assert_close(found.context[0, 2], found.grid[0, :, 0, 1])


@torch.no_grad()
def test_alone_and_in_a_batch(pyramid: ClipPyramid) -> None:
    pixels = torch.randn(2, 3, 64, 96)
    both, alone = pyramid(pixels), pyramid(pixels[1:])
    torch.testing.assert_close(both.grid[1:], alone.grid, atol=1e-5, rtol=0)
    for each, one in zip(both.levels, alone.levels, strict=True):
        torch.testing.assert_close(each[1:], one, atol=1e-5, rtol=1e-5)


def test_flat_image_is_finite(pyramid: ClipPyramid) -> None:
    found = pyramid(torch.zeros(1, 3, 64, 64))
    assert all(each.isfinite().all() for each in (*found.levels, found.grid, found.image))


def test_sizes_that_do_not_fit_are_told(pyramid: ClipPyramid) -> None:
    with pytest.raises(ShapeError, match="64x96"):
        pyramid(torch.zeros(1, 3, 65, 97))


def test_taps() -> None:
    assert vit().taps == (1, 2, 3, 5)
    assert vit(layers=12).taps == (3, 5, 7, 11)  # as published
    assert vit(taps=(0, 1, 2, -1)).taps == (0, 1, 2, 5)
    for wrong in ((0, 1, 2), (0, 1, 2, 6), (3, 2, 1, 0), (1, 1, 2, 3)):
        with pytest.raises(ConfigError, match=r"four rising blocks of 0\.\.5"):
            vit(taps=wrong)


def test_stochastic_depth_is_for_training_only() -> None:
    pixels = torch.randn(1, 3, 64, 64)
    plain, dropping = vit(), vit(drop_path_rate=0.9)
    torch.testing.assert_close(plain(pixels).grid, dropping(pixels).grid)
    dropping.visual.train()
    dropping.training = True
    found = torch.stack([dropping(pixels).grid for _ in range(4)])
    assert found.std(dim=0).max() > 0


def test_towers_that_do_not_fit() -> None:
    with pytest.raises(CheckpointError, match="patch 8"):
        vit(patch=8)
    with pytest.raises(CheckpointError, match="Linear"):
        build_pyramid(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="taps"):
        build_pyramid(resnet().visual, taps=(0, 1, 2, 3))
