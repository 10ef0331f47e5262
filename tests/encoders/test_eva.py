"""DINOv3 in pieces against timm's own forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from encoders.encoder_contract import PATCH, attend, close, picture, shake
from timm.models.eva import Eva

from ovseg.encoders.dino import DinoEncoder, FeatureKind
from ovseg.encoders.towers import attend as attend_as_trained
from ovseg.errors import CheckpointError

#: timm's settings for DINOv3, tiny.
DINOV3: dict[str, Any] = {
    "img_size": 32,
    "patch_size": PATCH,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 4,
    "num_classes": 0,
    "dynamic_img_size": True,
    "qkv_bias": False,
    "init_values": 0.5,
    "rope_type": "dinov3",
    "rope_temperature": 100,
    "rope_rotate_half": True,
    "use_rot_pos_emb": True,
    "use_abs_pos_emb": False,
    "num_reg_tokens": 4,
    "use_fc_norm": False,
}
SIZES = [(16, 40), (40, 24), (32, 32)]


def trunk(**options: object) -> Any:
    torch.manual_seed(0)
    return shake(Eva(**(DINOV3 | options)))


@pytest.fixture(params=[False, True], ids=["no bias", "bias of q and v"])
def eva(request: pytest.FixtureRequest) -> Any:
    return trunk(qkv_bias=request.param)


@pytest.mark.parametrize("size_hw", SIZES)
def test_tokens_are_timms(eva: Any, size_hw: tuple[int, int]) -> None:
    encoder, image = DinoEncoder(eva), picture(*size_hw, batch=2)
    theirs = eva.forward_features((image - encoder.mean) / encoder.std)
    ours, hw = encoder(image), (size_hw[0] // PATCH, size_hw[1] // PATCH)
    close(ours.prefix, theirs[:, :5], rtol=0, atol=1e-5)
    close(ours.grid, theirs[:, 5:].mT.unflatten(-1, hw), rtol=0, atol=1e-5)


def test_the_open_block_closes_to_timms_tokens(eva: Any) -> None:
    encoder, image = DinoEncoder(eva), picture(24, 40, batch=2)
    block = encoder.last_block(image)
    last = encoder.tower.blocks_on(block.hw)[-1]
    tokens = block.residual + last.project(attend(block.q, block.k, block.v))
    close(last.feed_forward(attend_as_trained(last, block.residual)), last.feed_forward(tokens))
    tokens = encoder.tower.finish(last.feed_forward(tokens))
    theirs = eva.forward_features((image - encoder.mean) / encoder.std)
    close(tokens, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["q", "k", "v"])
def test_features_are_the_plain_projections(kind: FeatureKind) -> None:
    eva, image, seen = trunk(), picture(16, 40), []
    handle = eva.blocks[-1].attn.qkv.register_forward_hook(lambda *call: seen.append(call[2]))
    eva((image - 0.5) / 0.5)
    handle.remove()
    part = seen[0].chunk(3, dim=-1)["qkv".index(kind)]
    encoder = DinoEncoder(eva, kind=kind, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    close(encoder(image).grid, part[:, 5:].mT.unflatten(-1, (2, 5)), rtol=0, atol=1e-5)


def test_the_opened_queries_are_rotated() -> None:
    encoder, image = DinoEncoder(trunk()), picture(16, 40)
    opened = encoder.last_block(image)
    plain = encoder.with_kind("q")(image)
    close(opened.q[:, :, :5].transpose(1, 2).flatten(2), plain.prefix)
    patches = opened.q[:, :, 5:].transpose(1, 2).flatten(2).mT.unflatten(-1, (2, 5))
    assert (patches - plain.grid).abs().max() > 0.1
    close(patches.norm(dim=1), plain.grid.norm(dim=1))


def test_half_precision_is_finite_and_near() -> None:
    encoder, image = DinoEncoder(trunk()), picture(24, 40)
    exact = encoder(image).grid
    encoder.cast(torch.bfloat16)
    half = encoder(image).grid
    assert half.dtype == torch.bfloat16
    assert torch.cosine_similarity(exact, half.float(), dim=1).min() > 0.98


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"use_post_norm": True}, "pre-norm blocks"),
        ({"attn_type": "rope"}, "plain attention"),
        ({"qkv_fused": False}, "one projection for q, k and v"),
        ({"use_abs_pos_emb": True}, "rotary positions only"),
        ({"use_rot_pos_emb": False}, "rotary positions only"),
        ({"rope_type": "mixed", "rope_rotate_half": False}, "the same rotation in all blocks"),
    ],
)
def test_other_evas_are_refused(options: dict[str, object], what: str) -> None:
    with pytest.raises(CheckpointError, match=f"none with {what} as DINOv3 has"):
        DinoEncoder(Eva(**(DINOV3 | options)))
