"""Every kind of tower that opens, against its library; every other kind, refused with a reason."""

from __future__ import annotations

from functools import partial

import open_clip
import pytest
import timm
import torch
from encoders.encoder_contract import PATCH, EncoderContract, close, picture, shake
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU, VisionTransformer
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor, nn

from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule, resample_positions
from ovseg.errors import CheckpointError

vit = partial(
    VisionTransformer,
    image_size=32,
    patch_size=PATCH,
    width=32,
    layers=3,
    heads=4,
    mlp_ratio=2,
    output_dim=16,
)


def timm_tower(pool: str, image_size: int = 32, **options: object) -> TimmModel:
    """open_clip's wrapper around a tiny timm ViT, with the linear projection of CLIP towers."""
    tower = TimmModel.__new__(TimmModel)
    nn.Module.__init__(tower)
    tower.trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=image_size,
        patch_size=PATCH,
        embed_dim=32,
        depth=3,
        num_heads=4,
        mlp_ratio=2,
        num_classes=0,
        global_pool=pool,
        **options,
    )
    tower.head = nn.Linear(32, 16, bias=False)
    return tower


class TestOpenClipViT(EncoderContract):
    def build(self) -> nn.Module:
        return vit(act_layer=QuickGELU)

    def test_non_square_agrees_with_a_library_model_of_that_size(self, encoder: ClipEncoder) -> None:
        state = encoder.visual.state_dict()
        position = state["positional_embedding"]
        state["positional_embedding"] = resample_positions(position, (4, 4), (2, 5), PositionRule())
        library = vit(act_layer=QuickGELU, image_size=(16, 40))
        library.load_state_dict(state)
        image = picture(16, 40)
        pooled = library.eval()((image - encoder.mean) / encoder.std)
        close(encoder(image).prefix[:, 0], pooled, rtol=0, atol=1e-5)


class TestOpenClipViTWithGelu(EncoderContract):
    def build(self) -> nn.Module:
        return vit(act_layer=nn.GELU)


class TestOpenClipViTWithLayerScale(EncoderContract):
    def build(self) -> nn.Module:
        return vit(ls_init_value=0.5)


class TestOpenClipViTWithoutPreNorm(EncoderContract):
    def build(self) -> nn.Module:
        return vit(no_ln_pre=True)


class TestTimmClassToken(EncoderContract):
    def build(self) -> nn.Module:
        return timm_tower("token")


class TestTimmLayerScaleAndQkNorm(EncoderContract):
    def build(self) -> nn.Module:
        return timm_tower("token", init_values=0.5, qk_norm=True, pre_norm=True)


class TestTimmRegisters(EncoderContract):
    num_prefix = 5

    def build(self) -> nn.Module:
        return timm_tower("token", reg_tokens=4)


class TestTimmNoEmbedClass(EncoderContract):
    num_prefix = 5

    def build(self) -> nn.Module:
        return timm_tower("token", reg_tokens=4, no_embed_class=True)


class _OnePatch(EncoderContract):
    """Pooling over patches: with a single patch, the pooled embedding is that patch's."""

    num_prefix = 0
    trained_hw = (1, 1)

    def pooled_token(self, encoder: ClipEncoder, image: Tensor) -> Tensor:
        return encoder(image).grid[..., 0, 0]


class TestTimmAveragePool(_OnePatch):
    def build(self) -> nn.Module:
        return timm_tower("avg", image_size=PATCH, class_token=False)


class TestTimmAttentionPool(_OnePatch):
    """SigLIP's head."""

    def build(self) -> nn.Module:
        return timm_tower("map", image_size=PATCH, class_token=False)


def test_attention_pool_of_equal_patches_is_a_patch() -> None:
    """Where all patches agree, so do their values, whatever the attention: the pooled embedding again."""
    tower = shake(timm_tower("map", class_token=False))
    tower.trunk.pos_embed.zero_()
    encoder = ClipEncoder(tower).eval()
    image = picture(PATCH, PATCH).tile(1, 1, 4, 4)
    pooled = tower((image - encoder.mean) / encoder.std)
    close(encoder(image).grid, pooled[:, :, None, None].expand(1, 16, 4, 4), rtol=0, atol=1e-5)


def test_qk_norm_shows() -> None:
    """The contract would not notice a missing q norm in `split` if the norms were identities."""
    tower = shake(timm_tower("token", qk_norm=True))
    encoder = ClipEncoder(tower).eval()
    block = tower.trunk.blocks[-1]
    tokens = encoder.open(picture(16, 40)).residual
    raw = block.attn.qkv(block.norm1(tokens)).chunk(3, dim=-1)[0].unflatten(-1, (4, -1)).transpose(1, 2)
    assert (encoder.open(picture(16, 40)).q - raw).abs().max() > 1e-2


def _eva() -> TimmModel:
    tower = timm_tower("avg", class_token=False)
    tower.trunk = timm.models.eva.Eva(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0
    )
    return tower


def _pool_with_positions() -> TimmModel:
    tower = timm_tower("map", class_token=False)
    tower.trunk.attn_pool.pos_embed = nn.Parameter(torch.zeros(16, 32))
    return tower


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (
            lambda: ModifiedResNet(layers=(1, 1, 1, 1), output_dim=16, heads=4, image_size=32, width=8),
            "ModifiedResNet: it has no transformer block",
        ),
        (lambda: vit(attentional_pool=True, attn_pooler_heads=4), "attention-pooled"),
        (lambda: vit(qk_norm=True), "custom blocks"),
        (_eva, "a timm Eva"),
        (lambda: timm_tower("token", block_fn=ParallelScalingBlock), "custom timm blocks"),
        (_pool_with_positions, "positions of its own"),
        (lambda: nn.Conv2d(3, 8, 8), "a Conv2d"),
    ],
)
def test_other_towers_are_refused_with_a_reason(build, why: str) -> None:
    with pytest.raises(CheckpointError, match=f"{why}.*Use a plain ViT"):
        ClipEncoder(build())


def test_library_classes_are_where_they_were() -> None:
    """open_clip's factory still builds the classes that the adapters know."""
    config = {"embed_dim": 16, "text_cfg": {"width": 16, "heads": 2, "layers": 1}}
    small = open_clip.CLIP(vision_cfg={"layers": 2, "width": 64, "patch_size": 8, "image_size": 32}, **config)
    assert isinstance(small.visual, VisionTransformer)
    assert ClipEncoder(small.visual).patch_hw == (8, 8)
