"""Mask prompt tuning against the authors' code (tests/golden/ovseg_mask_prompt)."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from golden_cases import Case, cases
from torch import Tensor

from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.mask_prompt import MaskPromptedClip, patches_shown
from ovseg.heads.regions import ensemble

CASES = cases("ovseg_mask_prompt")


def build(case: Case) -> tuple[MaskPromptedClip, dict]:
    settings = json.loads((case.folder / "settings.json").read_text())
    width = settings["width"]
    visual = open_clip.transformer.VisionTransformer(
        image_size=settings["image_px"],
        patch_size=settings["patch"],
        width=width,
        layers=settings["blocks"],
        heads=settings["heads"],
        mlp_ratio=case.weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
        output_dim=settings["joint_dim"],
        act_layer=open_clip.transformer.QuickGELU,
    )
    state = {name: value for name, value in case.weights.items() if name != "mask_embedding"}
    visual.load_state_dict(state, strict=True)
    encoder = ClipEncoder(visual, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).eval()
    model = MaskPromptedClip(encoder, depth=settings["mask_prompt_depth"])
    model.load_prompts(case.weights)
    return model, settings


def worst(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_features(case: Case) -> None:
    model, _ = build(case)
    mask = case["mask"][:, 0] > 0
    assert torch.equal(patches_shown(mask, model.encoder.patch_hw), case["patch_mask"] > 0)
    assert worst(model(case["image"], mask), case["features_masked"]) < 1e-4
    assert worst(model(case["image"]), case["features_plain"]) < 1e-4
    everywhere = torch.ones_like(mask)
    assert worst(model(case["image"], everywhere), case["features_plain"]) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_ensemble(case: Case) -> None:
    model, settings = build(case)
    features = F.normalize(model(case["image"], case["mask"][:, 0] > 0), dim=1)
    crops = (settings["clip_scale"] * features @ F.normalize(case["text_features"], dim=1).T).softmax(dim=1)
    assert worst(crops, case["clip_probs"]) < 1e-4
    weight = float(settings["ensemble"][1])
    assert worst(ensemble(case["mask_head_probs"], crops, weight), case["ensemble"]) < 1e-4


def test_weight_zero_is_the_dense_half_and_as_published_the_crops() -> None:
    dense, crops = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.2, 0.8]])
    assert torch.equal(ensemble(dense, crops, 0.0), dense)
    assert torch.equal(ensemble(dense, crops, 0.0, as_published=True), crops)
    assert torch.equal(ensemble(dense, crops, 1.0), crops)
    assert torch.equal(ensemble(dense, crops, 0.5), ensemble(dense, crops, 0.5, as_published=True))
