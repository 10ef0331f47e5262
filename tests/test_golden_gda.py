"""Gaussian discriminant analysis against what its authors' code computes."""

from __future__ import annotations

import pytest
import torch
from golden_cases import Case, cases

from ovseg.training.gda import GaussianSums, accuracy, best_strength


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().mean()))


@pytest.mark.parametrize("case", cases("gda"))
def test_golden(case: Case) -> None:
    features, labels, text = case["train_features"], case["train_labels"], case["text_weights"]
    classifier = GaussianSums(text.shape[1], features.shape[1]).add(features, labels).fit(as_published=True)
    ours = classifier.logits(case["val_features"])
    close(ours, case["gda_val_logits"])

    words = 100 * case["val_features"] @ text
    for strength, theirs in zip(case["alphas"].tolist(), case["val_logits"], strict=True):
        close(words + strength * ours, theirs)
    best, _ = best_strength(words, ours, case["val_labels"], case["alphas"].tolist(), per_class=False)
    assert best == pytest.approx(float(case["best_alpha"]))

    test = 100 * case["test_features"] @ text + best * classifier.logits(case["test_features"])
    close(test, case["test_logits"])
    assert 100 * accuracy(test, case["test_labels"], per_class=False) == pytest.approx(
        float(case["test_accuracy"])
    )


def test_a_golden_case_is_there() -> None:
    assert cases("gda")
