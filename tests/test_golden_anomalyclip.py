"""AnomalyCLIP against what its authors' code computes, at the tolerance that the golden case states."""

from __future__ import annotations

from functools import partial

import open_clip
import pytest
import torch
import torch.nn.functional as F
from anomaly_support import as_rgb, settings_of, vision_tower
from golden_cases import Case, cases

from ovseg.anomaly_structures import ABNORMAL, StateBank
from ovseg.methods.anomalyclip import AnomalyCLIP, BlockFeatures, ObjectPrompts, smoothed
from ovseg.text.embedded import encode_embedded
from ovseg.text.towers import ClipText
from ovseg.training.anomaly_losses import dice_loss, focal_loss, glocal_loss, segmentation_loss

close = partial(torch.testing.assert_close, rtol=0, check_dtype=False, atol=1e-5)


def build(case: Case) -> tuple[AnomalyCLIP, BlockFeatures, StateBank]:
    settings = settings_of(case)
    method = AnomalyCLIP(
        vision_tower(case, "visual."),
        dual_blocks=settings["dual_last_blocks"],
        feature_blocks=[block - 1 for block in settings["feature_blocks_1based"]],
        temperature=1 / settings["temperature"],
        smooth_std_px=float(settings["smooth_sigma"]),
    )
    bank = StateBank(case["text_features"], case["text_features"])
    return method, method.features(as_rgb(method.encoder, case["image"])), bank


def text_tower(case: Case) -> ClipText:
    settings = settings_of(case)
    model = open_clip.CLIP(
        settings["joint_dim"],
        vision_cfg=dict(image_size=32, patch_size=16, width=32, layers=1, head_width=16),
        text_cfg=dict(
            context_length=settings["context_length"],
            vocab_size=8,
            width=settings["text_width"],
            heads=settings["text_heads"],
            layers=settings["text_blocks"],
        ),
        quick_gelu=settings["activation"] == "quick_gelu",
    )
    state = {name: value for name, value in case.weights.items() if not name.startswith("visual.")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert [name for name in missing if not name.startswith("visual.")] == ["token_embedding.weight"]
    return ClipText(model.eval().requires_grad_(False))


@pytest.mark.parametrize("case", cases("anomalyclip"))
def test_golden_text(case: Case) -> None:
    deep = list(case["deep_tokens"])
    rows = encode_embedded(text_tower(case), case["prompts"], case["eot_index"], deep)
    close(rows, case["text_features_raw"], atol=1e-4)
    close(F.normalize(rows, dim=-1), case["text_features"], atol=1e-4)

    length = settings_of(case)["prompt_length"]
    learned = case["prompts"][:, None, None, 1 : 1 + length]
    state = {"prompt_learner.ctx_pos": learned[0], "prompt_learner.ctx_neg": learned[1]}
    state |= {f"prompt_learner.compound_prompts_text.{index}": each for index, each in enumerate(deep)}
    for as_published in (True, False):
        prompts = ObjectPrompts.from_state(state, as_published=as_published)
        for ours, theirs in zip(prompts.deep, deep, strict=True):
            close(ours.detach(), theirs, atol=0)


@pytest.mark.parametrize("case", cases("anomalyclip"))
def test_golden_features(case: Case) -> None:
    method, features, bank = build(case)
    close(features.image, case["image_features_raw"], atol=1e-4)
    close(F.normalize(features.image, dim=-1), case["image_features"], atol=1e-4)
    close(features.tokens, case["patch_features"], atol=1e-4)
    close(bank.probabilities(features.image, method.temperature), case["image_probs"])
    close(bank.probabilities(features.tokens, method.temperature), case["similarity"])


@pytest.mark.parametrize("case", cases("anomalyclip"))
def test_golden_maps(case: Case) -> None:
    method, features, bank = build(case)
    size_hw = tuple(case["anomaly_map"].shape[1:])
    blocks = len(case["anomaly_map_per_layer"])
    maps = torch.stack(
        [F.interpolate(each, size_hw, mode="bilinear") for each in method.maps(features, bank)]
    )
    close(maps.movedim(2, -1), case["similarity_maps"])
    close(maps[:, :, ABNORMAL], case["anomaly_map_per_layer"])
    close(maps[:, :, ABNORMAL].sum(dim=0), case["anomaly_map"])
    close(smoothed(case["anomaly_map"], method.smooth_std_px), case["anomaly_map_smoothed"])
    found = method.score(features, bank, size_hw)
    close(found.map * blocks, case["anomaly_map_smoothed"])
    close(found.score, case["image_probs"][:, ABNORMAL])


@pytest.mark.parametrize("case", cases("anomalyclip"))
def test_golden_losses(case: Case) -> None:
    maps = list(case["similarity_maps"].movedim(-1, 2))
    mask, labels = case["mask"].float(), case["label"]
    close(torch.stack([focal_loss(each, mask.long()) for each in maps]), case["focal"])
    close(torch.stack([dice_loss(each[:, 1], mask) for each in maps]), case["dice_pos"])
    close(torch.stack([dice_loss(each[:, 0], 1 - mask) for each in maps]), case["dice_neg"])
    close(4 * segmentation_loss(maps, mask), case["seg_loss_times4"], atol=4e-5)
    logits = case["image_features"] @ case["text_features"].T / settings_of(case)["temperature"]
    close(F.cross_entropy(logits, labels), case["image_ce"])
    close(glocal_loss(logits, labels, maps, mask), case["total_loss"], atol=4e-5)


def test_a_golden_case_is_there() -> None:
    assert cases("anomalyclip")
