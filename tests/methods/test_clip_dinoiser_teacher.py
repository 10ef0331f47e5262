"""CLIP-DINOiser and its teacher on odd sizes, flat images and batches; their weights by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from found_support import tiny_dino
from support import random_bank, random_image, tiny_encoder, tiny_part

from ovseg.encoders.found import FoundEncoder
from ovseg.errors import CheckpointError, ConfigError, ShapeError
from ovseg.heads import SegmentationHead
from ovseg.methods.clip_dinoiser import DinoiserConvolutions, clip_dinoiser
from ovseg.methods.clip_dinoiser_teacher import clip_dinoiser_teacher, objectness_on
from ovseg.methods.dinoiser_loading import dinoiser_from_file, load_dinoiser, load_found
from ovseg.methods.maskclip import maskclip
from ovseg.scorer import Scorer

SMALL = dict(short_side=64, crop=64, stride=32)
Build = Callable[..., Scorer]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def teacher(*, guide_patch: int = 16, **options: object) -> Scorer:
    found = FoundEncoder(tiny_dino(seed=4))
    parts = tiny_encoder(), tiny_dino(patch=guide_patch), found
    return clip_dinoiser_teacher(*parts, **(SMALL | options)).eval()


def pupil(**options: object) -> Scorer:
    return clip_dinoiser(tiny_encoder(), tiny_part("convolutions"), tap=-2, **(SMALL | options)).eval()


@pytest.mark.parametrize("build", [teacher, pupil])
@pytest.mark.parametrize("hw", [(70, 109), (37, 2000), (200, 16)])
def test_odd_sizes_and_flat_images_are_finite(build: Build, hw: tuple[int, int]) -> None:
    scorer = build(short_side=32)
    images = [random_image(*hw), np.full((*hw, 3), 128, np.uint8)]
    for background in (frozenset(), frozenset({1})):
        m = scorer(scorer.prepare(images), random_bank(background=background), hw)
        assert m.cosine.isfinite().all()
        for result in SegmentationHead()(m):
            assert result.labels.shape == hw
            assert np.isfinite(result.confidence).all()


@pytest.mark.parametrize("build", [teacher, pupil])
def test_one_by_one_equals_a_batch(build: Build) -> None:
    images = [random_image(70, 109, seed=seed) for seed in range(3)]
    scorer = build()
    together = scorer.encode(scorer.prepare(images))
    for index in range(3):
        alone = scorer.encode(scorer.prepare(images[index : index + 1]))
        torch.testing.assert_close(alone.grid[0], together.grid[index], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.objectness[0], together.objectness[index], atol=1e-4, rtol=1e-4)


def test_features_are_averages_of_what_the_guide_finds_alike() -> None:
    scorer, image = teacher(threshold=0.3), torch.rand(1, 3, 48, 80)
    dense = maskclip(tiny_encoder(), **SMALL).features(image).grid.flatten(2)[0]
    values = scorer.guide(image).grid.flatten(2)[0]
    pooled = scorer.features(image).grid.flatten(2)[0]
    for i in (0, 7, 14):
        weights = torch.stack([F.cosine_similarity(values[:, i], values[:, j], dim=0) for j in range(15)])
        weights = torch.where(weights < 0.3, 0, weights)
        torch.testing.assert_close(
            pooled[:, i], (dense * weights).sum(1) / weights.sum(), atol=1e-4, rtol=1e-4
        )


def test_nothing_alike_leaves_maskclip() -> None:
    image = torch.rand(1, 3, 48, 80)
    for residual in (True, False):
        plain = maskclip(tiny_encoder(), residual=residual, **SMALL).features(image).grid
        pooled = teacher(threshold=0.99999, residual=residual).features(image).grid
        torch.testing.assert_close(pooled, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("patch", "hw"), [(8, (6, 10)), (14, (3, 5))])
def test_the_guides_grid_is_the_results(patch: int, hw: tuple[int, int]) -> None:
    features = teacher(guide_patch=patch).features(torch.rand(2, 3, 48, 80))
    assert features.grid.shape[-2:] == hw
    assert features.objectness is not None
    assert features.objectness.shape[-2:] == hw


def test_probabilities_are_resized_and_not_logits() -> None:
    logits = torch.tensor([[8.0, -1.0], [-1.0, -1.0]])[None, None]
    assert objectness_on(logits, (1, 1)).item() == pytest.approx(
        torch.logit(logits.sigmoid().mean()).item(), abs=1e-5
    )
    assert objectness_on(logits, (1, 1)) < 0 < logits.mean()
    torch.testing.assert_close(objectness_on(logits, (2, 2)), logits, atol=1e-3, rtol=1e-3)


def test_background_needs_a_background_class() -> None:
    """FOUND says nothing is an object: every unsure patch is background, if there is such a class."""
    scorer = teacher(temperature=1.0, sure=1.0)
    scorer.saliency.decoder.weight.zero_()
    scorer.saliency.decoder.bias.fill_(-3.0)
    pictures = scorer.prepare([random_image(64, 100)])
    plain = SegmentationHead()(scorer(pictures, random_bank()))[0].labels
    assert (plain != 2).any()
    backed = SegmentationHead()(scorer(pictures, random_bank(background=frozenset({2}))))[0].labels
    assert (backed == 2).all()


def test_convolutions_of_another_tower_are_named() -> None:
    scorer = clip_dinoiser(tiny_encoder(), DinoiserConvolutions(768, 8), tap=-2, **SMALL)
    with pytest.raises(ShapeError, match="tower of width 768, this one has 64"):
        scorer.features(torch.rand(1, 3, 48, 80))


def official(hidden: int = 6, width: int = 24) -> dict[str, torch.Tensor]:
    return DinoiserConvolutions(width, hidden).state_dict()


def test_official_convolutions_with_a_frozen_tower_beside(tmp_path: Path) -> None:
    state = official()
    beside = {
        "clip_backbone.backbone.visual.proj": torch.zeros(3, 3),
        "vit_encoder.norm.weight": torch.ones(4),
    }
    path = tmp_path / "last.pt"
    torch.save({"epoch": 99, "model_state_dict": state | beside}, path)
    for loaded in (dinoiser_from_file(path), load_dinoiser(f"clip_dinoiser={path}")):
        assert loaded.obj_proj.padding_mode == "replicate"
        assert len(loaded.weights_sha256) == 64
        for name, value in state.items():
            torch.testing.assert_close(loaded.state_dict()[name], value)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("obj_proj.weight", (6, 24, 1, 1), r"obj_proj.weight is \(6, 24, 1, 1\) where \(6, 24, 3, 3\)"),
        ("bkg_decoder.weight", (1, 25, 1, 1), r"bkg_decoder.weight is \(1, 25, 1, 1\) where \(1, 24, 1, 1\)"),
        ("obj_proj.bias", (7,), r"obj_proj.bias is \(7,\) where \(6,\)"),
    ],
)
def test_other_shapes_are_named(tmp_path: Path, name: str, shape: tuple[int, ...], message: str) -> None:
    torch.save(official() | {name: torch.zeros(shape)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        dinoiser_from_file(tmp_path / "x.pt")


def test_found_by_name_takes_the_vit_that_is_there(tmp_path: Path) -> None:
    dino = tiny_dino()
    decoder = torch.nn.Conv2d(48, 1, 1)
    torch.save({"decoder": decoder.state_dict()}, tmp_path / "decoder_weights.pt")
    found = load_found(f"found_vits8={tmp_path / 'decoder_weights.pt'}", dino=dino)
    assert found.dino is dino
    torch.testing.assert_close(found.decoder.weight, decoder.weight)
    with pytest.raises(ConfigError, match="found_vits8"):
        load_found("found_vits9")


def test_the_bundled_family_fits_together() -> None:
    found, convolutions = load_found(), load_dinoiser()
    image = torch.from_numpy(random_image(64, 96)).permute(2, 0, 1)[None].float() / 255
    assert found(image).shape == (1, 1, 8, 12)
    assert convolutions.obj_proj.in_channels == 192
    assert not any(p.requires_grad for p in (*found.parameters(), *convolutions.parameters()))
