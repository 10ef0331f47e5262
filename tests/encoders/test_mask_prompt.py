"""Mask prompts beyond the golden case: what is painted over is not read, sizes, refusals."""

from __future__ import annotations

import pytest
import torch
from support import tiny_encoder

from ovseg.encoders.mask_prompt import MaskPromptedClip, patches_shown
from ovseg.errors import CheckpointError, ConfigError, ShapeError


def model(depth: int = 2, crop_px: int | None = None) -> MaskPromptedClip:
    built = MaskPromptedClip(tiny_encoder(), depth=depth, crop_px=crop_px)
    with torch.no_grad():
        built.prompts.copy_(torch.randn(built.prompts.shape, generator=torch.Generator().manual_seed(2)))
    return built.eval()


def crops() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    mask = torch.zeros(2, 48, 80, dtype=torch.bool)
    mask[0, :20, 10:40], mask[1, 30:, 60:] = True, True
    return torch.rand(2, 3, 48, 80, generator=generator), mask


@torch.no_grad()
def test_only_patches_of_the_region_are_read() -> None:
    image, mask = crops()
    built = model(depth=3)
    patch = built.encoder.patch_hw
    shown = patches_shown(mask, patch).repeat_interleave(patch[0], 1).repeat_interleave(patch[1], 2)
    before = built(image, mask)
    assert before.shape == (2, built.embed_dim)
    assert torch.allclose(built(torch.where(shown[:, None], image, 1 - image), mask), before, atol=1e-5)
    assert not torch.allclose(built(torch.where(shown[:, None], 1 - image, image), mask), before, atol=1e-3)
    assert torch.allclose(built(image[1:], mask[1:]), before[1:], atol=1e-5)


@torch.no_grad()
def test_without_mask_it_is_clip() -> None:
    image, mask = crops()
    built = model()
    assert torch.allclose(built(image), built.encoder(image).prefix[:, 0], atol=1e-5)
    assert torch.allclose(built(image, torch.ones_like(mask)), built(image), atol=1e-5)


def test_gradients_reach_every_prompt_of_a_hidden_patch() -> None:
    image, mask = crops()
    built = model(depth=3, crop_px=48)
    built(image[..., :48], mask[..., :48]).sum().backward()
    assert built.prompts.grad is not None
    assert built.prompts.shape[1] == (48 // built.encoder.patch_hw[0]) ** 2
    assert bool((built.prompts.grad.abs().sum(dim=(1, 2)) > 0).all())


def test_prompts_travel() -> None:
    other = model(depth=1)
    other.load_prompts({"crops.prompts": model(depth=2).prompts.detach()})
    assert other.depth == 2
    assert torch.equal(other.prompts, model(depth=2).prompts)
    with pytest.raises(CheckpointError, match="expected mask prompts"):
        other.load_prompts({"mask_embedding": torch.zeros(2, 3, 5)})
    with pytest.raises(CheckpointError, match="found none"):
        other.load_prompts({"something": torch.zeros(1)})


def test_refusals() -> None:
    image, _ = crops()
    with pytest.raises(ConfigError, match="depth must be 1 to"):
        MaskPromptedClip(tiny_encoder(), depth=9)
    with pytest.raises(ShapeError):
        model()(image[..., :41])
    with pytest.raises(ShapeError):
        model(crop_px=41)
