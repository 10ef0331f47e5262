"""Merging in the encoders: un-merged maps of the first size, images apart, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm.models.eva
import torch
from support import tiny_encoder, tiny_part

from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.token_merging import Membership, TokenMerging
from ovseg.errors import ConfigError

MERGING = TokenMerging(keep=0.7)


def images(count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, 48, 80, generator=torch.Generator().manual_seed(3))


def merged(encoder: ClipEncoder, **changes: object) -> ClipEncoder:
    encoder.merging = replace(MERGING, **changes)
    return encoder


@torch.no_grad()
def test_nothing_merged_is_the_tower_as_it_was() -> None:
    plain = tiny_encoder().open(images(), taps=[0], ffn_taps=[1])
    same = merged(tiny_encoder(), keep=1.0).open(images(), taps=[0], ffn_taps=[1])
    late = merged(tiny_encoder(), first=9).open(images())
    for other in (same, late):
        assert torch.allclose(other.q, plain.q, atol=1e-6)
    assert torch.allclose(same.taps[0], plain.taps[0], atol=1e-6)
    assert torch.allclose(same.ffn_taps[1], plain.ffn_taps[1], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("rule", ["pitome", "pitome_bsm", "tome"])
@pytest.mark.parametrize("proportional", [False, True])
def test_open_is_unmerged_and_each_image_by_itself(rule: str, proportional: bool) -> None:
    encoder = merged(tiny_encoder(), rule=rule, proportional=proportional)
    both = encoder.open(images(), taps=[-2], ffn_taps=[1])
    plain = tiny_encoder().open(images())
    assert both.q.shape == plain.q.shape
    assert not torch.allclose(both.q, plain.q, atol=1e-3)
    patches = both.residual[0, both.num_prefix :]
    assert len(patches.unique(dim=0)) < len(patches)  # members of one token hold the same
    assert torch.equal(both.taps[-2], both.residual)
    assert both.ffn_taps[1].shape == both.residual.shape
    for index in range(2):
        alone = encoder.open(images()[index : index + 1])
        assert torch.allclose(alone.q[0], both.q[index], atol=1e-5)
    assert encoder(images()).grid.shape == tiny_encoder()(images()).grid.shape


@torch.no_grad()
def test_flat_images_stay_finite() -> None:
    flat = torch.full((1, 3, 48, 80), 0.5)
    assert torch.isfinite(merged(tiny_encoder())(flat).grid).all()


@torch.no_grad()
def test_dino_merges_too() -> None:
    guide = tiny_part("guide")
    assert isinstance(guide, DinoEncoder)
    before = guide(images()).grid
    guide.merging = MERGING
    after = guide.with_kind("v")(images()).grid
    assert after.shape == before.shape
    assert guide(images()).grid.shape == before.shape
    assert not torch.allclose(guide(images()).grid, before)


def test_membership_gives_every_member_its_mean() -> None:
    step = Membership(torch.tensor([[0, 1, 1, 2]]), 3)
    tokens = torch.tensor([[[1.0], [2.0], [6.0], [5.0]]])
    mean = step.mean(tokens, torch.tensor([[1.0, 3.0, 1.0, 1.0]]))
    assert mean.flatten().tolist() == [1.0, 3.0, 5.0]
    assert step.spread(mean).flatten().tolist() == [1.0, 3.0, 3.0, 5.0]
    later = Membership(torch.tensor([[0, 0, 1]]), 2)
    assert step.then(later).owner.tolist() == [[0, 0, 0, 1]]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"keep must be 0\.5 to 1"):
        TokenMerging(keep=0.4)
    with pytest.raises(ConfigError, match="margin"):
        TokenMerging(margin=1.0)
    trunk = timm.models.eva.Eva(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=0)
    with pytest.raises(ConfigError, match="cannot merge"):
        DinoEncoder(trunk, merging=MERGING, name="dinov3")
