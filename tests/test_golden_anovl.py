"""AnoVL against what its authors' code computes, at the tolerance that the golden case states."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from anomaly_support import as_rgb, settings_of, vision_tower
from golden_cases import Case, cases

from ovseg.anomaly_structures import ABNORMAL, AnomalyScores, StateBank
from ovseg.methods.anovl import AnoVL, TextAdapter

close = partial(torch.testing.assert_close, rtol=0, check_dtype=False, atol=1e-5)


def build(case: Case) -> tuple[AnoVL, StateBank]:
    settings = settings_of(case)
    method = AnoVL(
        vision_tower(case),
        dual_blocks=settings["dual_blocks"],
        temperature=1 / settings["temperature"],
        steps=settings["tta_steps"],
        learning_rate=settings["tta_lr"],
        weight_decay=settings["weight_decay"],
        smooth_cells=settings["smooth_kernel"],
    )
    prompts = case["prompt_text_features"]
    return method, StateBank(case["text_features"].T, torch.cat([prompts[..., 0], prompts[..., 1]]))


def start(case: Case, bank: StateBank) -> TextAdapter:
    return TextAdapter(case["adapter_w0"], case["adapter_b0"], bank.prompts)


@pytest.mark.parametrize("case", cases("anovl"))
def test_golden_features_and_scores(case: Case) -> None:
    method, bank = build(case)
    image = as_rgb(method.encoder, case["image"])
    features = method.features(image)
    pooled = torch.cat([features.prefix, features.grid.flatten(2).mT], dim=1)
    close(pooled, case["pooled"], atol=1e-4)
    close(pooled[:, 1:], case["projected_vv_tokens"], atol=1e-4)
    close(bank.probabilities(pooled, method.temperature), case["image_probs"])
    method.with_copies = False
    close(method.image_score(image, bank), case["image_probs"][:, 0, ABNORMAL])

    method.steps = 0
    found = method(image, bank)
    tokens = method.patch_tokens(features, bank)
    close(bank.probabilities(tokens, method.temperature)[0, ..., ABNORMAL], case["score_grid"])
    close(found.resized(tuple(case["heatmap"].shape)).map[0], case["heatmap"])


@pytest.mark.parametrize("case", cases("anovl"))
def test_golden_adaptation(case: Case) -> None:
    method, bank = build(case)
    tokens = case["projected_vv_tokens"][0]
    noise = case["noise"][:, 0].flatten(1, 2)
    fitted, losses = start(case, bank).fitted(
        tokens,
        bank,
        noise,
        temperature=method.temperature,
        learning_rate=method.learning_rate,
        weight_decay=method.weight_decay,
    )
    close(torch.tensor(losses), case["tta_losses"])
    close(fitted.weight, case["adapter_w_final"])
    close(fitted.bias, case["adapter_b_final"])


@pytest.mark.parametrize("case", cases("anovl"))
def test_golden_adapted_map(case: Case) -> None:
    method, bank = build(case)
    features = method.features(as_rgb(method.encoder, case["image"]))
    adapted = method.patch_tokens(features, bank, start(case, bank), case["noise"][:, 0])
    close(adapted, case["tta_tokens"], atol=1e-4)
    close(bank.probabilities(adapted, method.temperature)[0, ..., ABNORMAL], case["tta_score_grid"])
    found = AnomalyScores(method.anomaly_map(adapted, bank), torch.zeros(1), align_corners=True)
    close(found.resized(tuple(case["tta_heatmap"].shape)).map[0], case["tta_heatmap"])


def test_a_golden_case_is_there() -> None:
    assert cases("anovl")
