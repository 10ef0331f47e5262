"""CLIP-EBC's head, sliding windows, losses and metrics against what the authors' code computes."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch
from golden_cases import Case, cases
from torch import Tensor

from ovseg.heads.count_bins import CountBins
from ovseg.heads.ebc import EbcHead, slide
from ovseg.metrics.counting import CountingErrors
from ovseg.training.count_losses import block_counts, dace_loss

close = partial(torch.testing.assert_close, check_dtype=False)


def settings(case: Case) -> dict:
    return json.loads((case.folder / "settings.json").read_text())


def bins_of(case: Case) -> CountBins:
    bounds = tuple((float(low), float(high)) for low, high in settings(case)["bins"])
    return CountBins(bounds, tuple(map(float, settings(case)["representatives"])), int(case["reduction"]))


def head_of(case: Case) -> EbcHead:
    return EbcHead(
        case["text_features"],
        bins_of(case),
        channels=case["features"].shape[1],
        feature_px=int(case["encoder_reduction"]),
        logit_scale=settings(case)["logit_scale"],
    )


def points_of(case: Case) -> tuple[Tensor, ...]:
    return case["points"].split(case["points_per_image"].tolist())


@pytest.mark.parametrize("case", cases("clip_ebc"))
def test_golden_density(case: Case) -> None:
    blocks = head_of(case)(case["features"])
    close(blocks.logits, case["logits"], rtol=1e-5, atol=1e-5)
    close(blocks.density, case["density"], rtol=1e-5, atol=1e-5)
    close(blocks.counts, case["counts"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", cases("clip_ebc"))
def test_golden_targets(case: Case) -> None:
    bins = bins_of(case)
    size_hw = (case["point_map"].shape[2], case["point_map"].shape[3])
    counts = block_counts(points_of(case), size_hw, bins.block_px, as_published=True)
    close(counts, case["block_counts"], rtol=0, atol=0)
    close(bins.index(counts[:, 0]), case["target_bins"], rtol=0, atol=0)
    every_dot = block_counts(points_of(case), size_hw, bins.block_px)
    assert every_dot.sum() == len(case["points"])
    close(torch.tensor([low for low, _ in bins.bounds]), case["bins_low"], rtol=0, atol=0)
    close(torch.tensor([high for _, high in bins.bounds]), case["bins_high_inf"], rtol=0, atol=0)
    close(torch.tensor(bins.centres), case["anchors"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["mae", "mse", "dmcount"])
@pytest.mark.parametrize("case", cases("clip_ebc"))
def test_golden_losses(case: Case, kind: str) -> None:
    logits = case["logits"].clone().requires_grad_()
    density = case["density"].clone().requires_grad_()
    loss, terms = dace_loss(
        logits, density, points_of(case), bins_of(case), count_loss=kind, as_published=True
    )
    loss.backward()
    close(loss.detach(), case[f"loss_{kind}"].reshape(()), rtol=1e-5, atol=1e-5)
    theirs = {"mae": "mae", "mse": "mse", "ce": "ce", "count": "count", "variation": "tv", "transport": "ot"}
    for name, value in terms.items():
        # The transport's value is 0 but for rounding.
        allowed = 1e-2 if name == "transport" else 1e-5
        close(value, case[f"{kind}_info_{theirs[name]}_loss"].reshape(()), rtol=1e-5, atol=allowed)
    tolerance = 1e-3 if kind == "dmcount" else 1e-5
    assert density.grad is not None
    close(density.grad, case[f"grad_density_{kind}"], rtol=tolerance, atol=tolerance)
    assert logits.grad is not None
    close(logits.grad, case["grad_logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", cases("clip_ebc"))
def test_golden_sliding_windows(case: Case) -> None:
    block = int(case["reduction"])
    side, stride = case["window"].tolist()

    def toy(windows: Tensor) -> Tensor:
        scale = windows.shape[-1]  # so that windows of another size would show
        return torch.nn.functional.avg_pool2d(windows[:, :1].abs(), block) * scale

    for max_batch in (1, 16):
        density = slide(
            toy,
            case["window_image"],
            window_hw=(side, side),
            stride_hw=(stride, stride),
            block_px=block,
            max_batch=max_batch,
        )
        close(density, case["window_density"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", cases("clip_ebc"))
def test_golden_errors(case: Case) -> None:
    errors = CountingErrors()
    for predicted, truth in zip(case["err_pred"].tolist(), case["err_gt"].tolist(), strict=True):
        errors.update(predicted, truth)
    report = errors.report()
    assert math.isclose(report.mae, float(case["mae"].item()), rel_tol=1e-7)
    assert math.isclose(report.rmse, float(case["rmse"].item()), rel_tol=1e-7)


def test_prompts_are_the_published_ones() -> None:
    bins = CountBins.published("sha")
    assert bins.prompts() == (
        "There is no person.",
        "There is one person.",
        "There are two people.",
        "There are three people.",
        "There are more than four people.",
    )
    assert bins.prompts(digits=True)[::2] == (
        "There is 0 person.",
        "There are 2 people.",
        "There are more than 4 people.",
    )


def test_golden_cases_are_there() -> None:
    assert cases("clip_ebc"), "no golden case of clip_ebc"
