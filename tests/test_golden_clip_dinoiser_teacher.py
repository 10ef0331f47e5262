"""CLIP-DINOiser's teacher, and the first steps of its pupil's training, against the authors' code."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from found_support import golden_found
from golden_cases import Case, cases

from ovseg.correlation.pooling import cosine_correlation
from ovseg.encoders.positions import PositionRule
from ovseg.methods.clip_dinoiser import DinoiserConvolutions
from ovseg.methods.clip_dinoiser_teacher import clip_dinoiser_teacher
from ovseg.training.dinoiser import dinoiser_losses, dinoiser_optimizer, prepare_lesson
from ovseg.windows import resize_image, resized_hw

FEATURES, PROBABILITIES = 2e-4, 1e-3
PUBLISHED = PositionRule(as_published=True)
close = partial(torch.testing.assert_close, rtol=0, check_dtype=False)


def teachers(case: Case):
    guide = case.dino_encoder(patch=case.weights["dino.patch_embed.proj.weight"].shape[-1])
    guide.positions = PUBLISHED
    return case.clip_encoder(quick_gelu=False), guide, golden_found(case)


@pytest.mark.parametrize("case", cases("clip_dinoiser_teacher"))
def test_golden_teacher(case: Case) -> None:
    settings = case.settings
    encoder, guide, found = teachers(case)
    image = case["image"].numpy()
    resized = resize_image(image, resized_hw(image.shape[:2], settings["short"]))
    assert (torch.from_numpy(resized) == case["resized_uint8_hwc_rgb"]).all()

    scorer = clip_dinoiser_teacher(
        encoder,
        guide,
        found,
        crop=None,
        stride=None,
        temperature=float(settings["softmax_scale"]),
        threshold=settings["gamma"],
        sure=settings["delta"],
        as_published=True,
    )
    padded = scorer.windows.windows(tuple(case.rgb.shape[-2:]), encoder.patch_hw).cut(case.rgb, encoder.mean)
    with torch.no_grad():
        values = guide.with_kind("v")(padded).grid
        close(
            values.flatten(2) / values.flatten(2).norm(dim=1, keepdim=True),
            case["dino_v_feats"],
            atol=FEATURES,
        )
        cosines = cosine_correlation(values)
        ours = torch.where(cosines < settings["gamma"], 0, cosines).unflatten(-1, values.shape[-2:])
        close(ours, case["dino_corrs"], atol=FEATURES)
        close(found(padded).sigmoid(), case["found_sigmoid"], atol=PROBABILITIES)
        close(scorer.features(padded).grid, case["refined_feats"], atol=FEATURES)
    without = replace(case.bank, background=frozenset())
    close(scorer(case.pictures, without).probabilities, case["probs_lowres_nofound"], atol=PROBABILITIES)
    close(scorer(case.pictures, case.bank).probabilities, case["probs_lowres_found"], atol=PROBABILITIES)


@pytest.mark.parametrize("case", cases("clip_dinoiser_teacher"))
def test_golden_training(case: Case) -> None:
    encoder, guide, found = teachers(case)
    state = {name: value for name, value in case.weights.items() if name.startswith(("obj_proj", "bkg_dec"))}
    convolutions = DinoiserConvolutions(*reversed(state["obj_proj.weight"].shape[:2]))
    convolutions.load_state_dict(state, strict=True)
    lesson = prepare_lesson(
        case["train_batch"],
        encoder,
        guide.with_kind("v"),
        found,
        tap=case.settings["feats_idx"],
        threshold=case.settings["gamma"],
        positions=PositionRule("size", as_published=True),
    )
    assert (lesson.objects == case["train_found_target"].bool()).all()
    theirs = case["train_dino_target"].bool()
    assert (lesson.alike == theirs.flatten(2).mT).all()

    optimizer, schedule = dinoiser_optimizer(convolutions)
    for step, losses in enumerate(case["train_losses_dino_found"]):
        pairs, patches = dinoiser_losses(convolutions, lesson)
        close(torch.stack([pairs, patches]), losses, atol=1e-5)
        optimizer.zero_grad()
        (pairs + patches).backward()
        if step == 0:
            close(convolutions.obj_proj.weight.grad, case["grad_obj_proj_weight_step1"], atol=1e-6)
            close(convolutions.bkg_decoder.weight.grad, case["grad_bkg_weight_step1"], atol=1e-6)
        optimizer.step()
        schedule.step()
    for layer in ("obj_proj", "bkg_decoder"):
        for kind in ("weight", "bias"):
            ours = getattr(getattr(convolutions, layer), kind)
            close(ours, case[f"{layer}_{kind}_after3"], atol=1e-5)


def test_golden_cases_are_there() -> None:
    assert cases("clip_dinoiser_teacher"), "no golden case of clip_dinoiser_teacher"
