"""The guide's features against timm's own forward, and its views that share one trunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from encoders.encoder_contract import PATCH, attend, close, picture, shake
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ovseg.encoders.dino import DinoEncoder, FeatureKind
from ovseg.encoders.positions import PositionRule
from ovseg.errors import CheckpointError, ConfigError, ShapeError

SIZE = {"img_size": 32, "patch_size": PATCH, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 0}


def trunk(**options: object) -> Any:
    torch.manual_seed(0)
    return shake(VisionTransformer(**(SIZE | options)))


@pytest.mark.parametrize("kind", ["q", "k", "v"])
@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_projections_are_those_of_the_qkv_layer(kind: FeatureKind, layer: int) -> None:
    vit = trunk()
    encoder, image = DinoEncoder(vit, kind=kind, layer=layer), picture(16, 40, batch=2)
    seen: list[torch.Tensor] = []
    handle = vit.blocks[layer].attn.qkv.register_forward_hook(lambda *call: seen.append(call[2]))
    DinoEncoder(vit)(image)
    handle.remove()
    part = seen[0].chunk(3, dim=-1)["qkv".index(kind)]
    features = encoder(image)
    close(features.grid, part[:, 1:].mT.unflatten(-1, (2, 5)), rtol=0, atol=1e-5)
    close(features.prefix, part[:, :1], rtol=0, atol=1e-5)


def test_qk_is_the_sum() -> None:
    base, image = DinoEncoder(trunk()), picture(16, 40)
    both = base.with_kind("q")(image).grid + base.with_kind("k")(image).grid
    close(base.with_kind("qk")(image).grid, both)


def test_with_kind_shares_the_trunk_and_keeps_the_rest() -> None:
    base = DinoEncoder(trunk(), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), name="d", weights_sha256="a" * 64)
    other = base.eval().with_kind("k", layer=1)
    assert other.trunk is base.trunk
    assert (other.kind, other.layer, base.kind, base.layer) == ("k", 1, "tokens", 2)
    assert (other.name, other.weights_sha256) == ("d", "a" * 64)
    assert other.positions is base.positions
    assert torch.equal(other.mean, base.mean)
    assert torch.equal(other.std, base.std)
    assert not other.training
    assert not other.trunk.training


def test_the_open_block_closes_to_the_tokens() -> None:
    encoder, image = DinoEncoder(trunk(init_values=0.5, reg_tokens=4)), picture(24, 40, batch=2)
    block = encoder.last_block(image)
    assert (block.hw, block.num_prefix, block.image_hw) == ((3, 5), 5, (24, 40))
    last = encoder.tower.blocks[-1]
    tokens = block.residual + last.project(attend(block.q, block.k, block.v))
    tokens = encoder.tower.finish(last.feed_forward(tokens))
    close(tokens[:, 5:].mT.unflatten(-1, (3, 5)), encoder(image).grid, rtol=0, atol=1e-5)
    keys = encoder.with_kind("k")(image)
    close(block.k[:, :, 5:].transpose(1, 2).flatten(2).mT.unflatten(-1, (3, 5)), keys.grid)


def test_the_last_block_is_the_last_whatever_the_kind() -> None:
    base, image = DinoEncoder(trunk()), picture(16, 40)
    assert torch.equal(base.with_kind("k", layer=0).last_block(image).q, base.last_block(image).q)


@pytest.mark.parametrize(("kind", "layer"), [("tokens", 0), ("k", 3), ("k", -4)])
def test_layers_that_are_not_there(kind: FeatureKind, layer: int) -> None:
    with pytest.raises(ConfigError, match=f"layer must name one of 3 blocks.*got {layer}"):
        DinoEncoder(trunk()).with_kind(kind, layer)


def test_other_trunks_and_sizes_are_refused() -> None:
    with pytest.raises(CheckpointError, match="a timm Linear"):
        DinoEncoder(nn.Linear(1, 1))
    for call in (DinoEncoder(trunk()), DinoEncoder(trunk()).last_block):
        with pytest.raises(ShapeError, match="20x16"):
            call(picture(20, 16))


@pytest.mark.parametrize("size_hw", [(16, 40), (40, 24), (48, 80)])
@pytest.mark.parametrize("options", [{}, {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.5}])
def test_tokens_are_timms_where_positions_are(size_hw: tuple[int, int], options: dict[str, object]) -> None:
    vit = trunk(**options, dynamic_img_size=True)
    encoder, image = DinoEncoder(vit, positions=PositionRule("antialias")), picture(*size_hw, batch=2)
    theirs = vit.forward_features((image - encoder.mean) / encoder.std)
    ours, hw = encoder(image), (size_hw[0] // PATCH, size_hw[1] // PATCH)
    count = encoder.tower.num_prefix
    close(ours.prefix, theirs[:, :count], rtol=0, atol=1e-5)
    close(ours.grid, theirs[:, count:].mT.unflatten(-1, hw), rtol=0, atol=1e-5)
    offset = DinoEncoder(vit)(image)
    assert (offset.grid - ours.grid).abs().max() > 1e-3
