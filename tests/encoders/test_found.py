"""FOUND: seeds against a loop written from the formula, sizes, files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from found_support import tiny_dino
from safetensors.torch import save_file
from torch import nn

from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.found import FoundEncoder, background_seed, class_attention, keys_of, load_decoder
from ovseg.errors import CheckpointError, ConfigError, ShapeError


@pytest.fixture(scope="module")
def found() -> FoundEncoder:
    torch.manual_seed(0)
    return FoundEncoder(tiny_dino()).eval().requires_grad_(False)


def picture(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(2))


def test_seed_is_the_formula(found: FoundEncoder) -> None:
    block = found.open(picture(48, 72))
    heads, keys = block.k.shape[1], block.k[0, :, 1:]
    rows = [
        (block.q[0, h, 0] @ block.k[0, h].T / math.sqrt(block.k.shape[-1])).softmax(-1)[1:]
        for h in range(heads)
    ]
    threshold = torch.cat(rows).mean()
    shares = [(row > threshold).float().mean() for row in rows]
    weights = [math.log(sum(shares) / share) for share in shares]
    reference = sum(w * row for w, row in zip(weights, rows, strict=True)).argmin()
    descriptors = torch.cat([w * k for w, k in zip(weights, keys, strict=True)], dim=-1)
    cosine = torch.cosine_similarity(descriptors, descriptors[reference][None])
    torch.testing.assert_close(class_attention(block)[0], torch.stack(rows))
    expected = (cosine > 0.3).unflatten(0, block.hw)
    assert (background_seed(block)[0] == expected).all()
    assert 0 < expected.sum() < expected.numel()
    assert background_seed(block, least_cosine=-1.1).all()


def test_logits_are_a_convolution_of_the_keys(found: FoundEncoder) -> None:
    image = picture(40, 64, batch=2)
    keys = found.dino.with_kind("k")(image).grid
    torch.testing.assert_close(keys_of(found.open(image)), keys)
    expected = torch.einsum("bchw,c->bhw", keys, found.decoder.weight[0, :, 0, 0]) + found.decoder.bias
    torch.testing.assert_close(found(image)[:, 0], expected)


@pytest.mark.parametrize(("size_hw", "grid_hw"), [((41, 70), (6, 9)), ((37, 200), (5, 25)), ((8, 8), (1, 1))])
def test_any_size_is_padded_with_the_mean(found: FoundEncoder, size_hw, grid_hw) -> None:
    image = picture(*size_hw)
    assert found(image).shape == (1, 1, *grid_hw)
    padded = found.dino.mean.expand(1, 3, grid_hw[0] * 8, grid_hw[1] * 8).clone()
    padded[..., : size_hw[0], : size_hw[1]] = image
    torch.testing.assert_close(found(image), found(padded))


def test_flat_images_and_batches(found: FoundEncoder) -> None:
    flat = torch.full((1, 3, 40, 64), 0.5)
    block = found.open(flat)
    assert found(flat).isfinite().all()
    assert background_seed(block).shape == (1, 5, 8)
    images = torch.cat([picture(40, 64, batch=2), flat])
    together = found.open(images)
    for index in range(3):
        alone = found.open(images[index : index + 1])
        assert (background_seed(together)[index] == background_seed(alone)[0]).all()
        torch.testing.assert_close(found.decode(together)[index], found.decode(alone)[0])


def test_seed_survives_a_head_that_looks_everywhere() -> None:
    """Where no patch of a head is above the mean, its share is 0 and its weight large, not infinite."""
    dino = tiny_dino()
    block = FoundEncoder(dino).open(picture(40, 64))
    shy = block.q.clone()
    shy[:, 0, 0] = 0
    attention_row = torch.zeros_like(shy)
    attention_row[:, 1:, 0] = 40 * block.k[:, 1:, 3]  # the other heads take one patch each
    block = type(block)(
        shy * 0 + attention_row, block.k, block.v, block.residual, block.hw, 1, block.image_hw
    )
    assert background_seed(block).any()


def test_registers_are_no_patches() -> None:
    dino = tiny_dino(reg_tokens=4)
    found = FoundEncoder(dino)
    assert found(picture(40, 64)).shape == (1, 1, 5, 8)
    assert class_attention(found.open(picture(40, 64))).shape == (1, 3, 40)


def test_wrong_parts_are_named() -> None:
    with pytest.raises(ShapeError, match="keys of 384 channels, this ViT's have 48"):
        FoundEncoder(tiny_dino(), nn.Conv2d(384, 1, 1))
    with pytest.raises(ConfigError, match="class token"):
        FoundEncoder(tiny_dino(class_token=False, global_pool="avg"))


def test_cast_keeps_statistics() -> None:
    found = FoundEncoder(tiny_dino())
    found.cast(torch.bfloat16)
    assert found.dino.mean.dtype == torch.float32
    assert found(picture(40, 64)).dtype == torch.bfloat16


@pytest.mark.parametrize("prefix", ["", "decoder.", "found.decoder."])
def test_decoder_files(tmp_path: Path, prefix: str) -> None:
    given = nn.Conv2d(24, 1, 1)
    state = {f"{prefix}{name}": value for name, value in given.state_dict().items()}
    if prefix:
        state["found.vit_encoder.norm.weight"] = torch.ones(24)
    save_file(state, tmp_path / "d.safetensors")
    decoder = load_decoder(tmp_path / "d.safetensors")
    torch.testing.assert_close(decoder.weight, given.weight)
    torch.testing.assert_close(decoder.bias, given.bias)


def test_the_official_files_form(tmp_path: Path) -> None:
    given = nn.Conv2d(24, 1, 1).state_dict()
    torch.save({"decoder": given}, tmp_path / "decoder_weights.pt")
    torch.testing.assert_close(load_decoder(tmp_path / "decoder_weights.pt").weight.data, given["weight"])


@pytest.mark.parametrize(
    "state",
    [
        {"bkg_decoder.weight": torch.zeros(1, 24, 1, 1), "bkg_decoder.bias": torch.zeros(1)},
        {"decoder.weight": torch.zeros(2, 24, 1, 1), "decoder.bias": torch.zeros(2)},
        {"decoder.weight": torch.zeros(24), "decoder.bias": torch.zeros(1)},
        {"decoder.weight": torch.zeros(1, 24, 1, 1)},
    ],
)
def test_files_that_are_no_decoder(tmp_path: Path, state: dict) -> None:
    save_file(state, tmp_path / "d.safetensors")
    with pytest.raises(CheckpointError, match="no FOUND decoder"):
        load_decoder(tmp_path / "d.safetensors")


def test_dino_is_never_trained(found: FoundEncoder) -> None:
    dino: DinoEncoder = tiny_dino()
    dino.requires_grad_(True)
    trained = FoundEncoder(dino)
    trained(picture(40, 64)).sum().backward()
    assert trained.decoder.weight.grad is not None
    assert all(parameter.grad is None for parameter in dino.parameters())
