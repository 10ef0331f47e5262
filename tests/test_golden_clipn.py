"""Rejection scores, their figures and the losses of the "no" tower against the CLIPN authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_cases import Case, cases

from ovseg.heads.rejection import NEEDS_NO, Evidence
from ovseg.metrics.ood import ood_report
from ovseg.training.clipn import clipn_loss

RULES = ("msp", "maxlogit", "energy", "ctw", "atd")


@pytest.mark.parametrize("case", cases("clipn"))
def test_golden_clipn(case: Case) -> None:
    assert (case["logits_yes_id"].argmax(1) == case["labels_id"]).double().mean() == pytest.approx(
        float(case.arrays["id_accuracy"])
    )
    for rule in RULES:
        for kind in ("id", "ood"):
            yes, no = case[f"logits_yes_{kind}"].T, case[f"logits_no_{kind}"].T
            score = Evidence().add(yes, no if rule in NEEDS_NO else None).score(rule)
            torch.testing.assert_close(score, case[f"{rule}_{kind}"], atol=1e-5, rtol=1e-5)
        # ranks of their own scores: many are 1 up to the last bit, and rounding decides between those
        report = ood_report(*(case.arrays[f"{rule}_{kind}"].astype(np.float64) for kind in ("id", "ood")))
        assert report.auroc == pytest.approx(float(case.arrays[f"{rule}_auroc"]), abs=1e-6), rule
        assert report.fpr95 == pytest.approx(float(case.arrays[f"{rule}_fpr95"]), abs=1e-6), rule


@pytest.mark.parametrize("case", cases("clipn"))
def test_golden_clipn_losses(case: Case) -> None:
    loss = clipn_loss(
        case["loss_image"], case["loss_text_yes"], case["loss_text_no"], float(case.arrays["loss_scale"])
    )
    ours = [float(each) for each in (loss.matched, loss.unmatched, loss.opposite, loss.total)]
    theirs = [float(case.arrays[name]) for name in ("loss_bin_yes", "loss_bin_no", "loss_tso", "total_loss")]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_golden_cases_are_there() -> None:
    assert cases("clipn"), "no golden case of CLIPN"
