"""FOUND and its bilateral solver against what the authors' code computes."""

from __future__ import annotations

from functools import partial

import cv2
import pytest
import torch
from found_support import golden_found
from golden_cases import Case, cases, differing

from ovseg.encoders.found import background_seed, class_attention, keys_of
from ovseg.training.bilateral import BilateralGrid, colour_mask, solve
from ovseg.training.found import coloured_targets

FEATURES, PROBABILITIES = 2e-4, 1e-3
close = partial(torch.testing.assert_close, rtol=0, check_dtype=False)


@pytest.mark.parametrize("case", cases("found"))
def test_golden_found(case: Case) -> None:
    found = golden_found(case)
    image = case["image"].permute(2, 0, 1)[None].float() / 255
    padded = found.open(image)
    close(keys_of(padded), case["eval_k_feats"], atol=FEATURES)
    close(class_attention(padded), case["eval_cls_attention"], atol=FEATURES)
    close(found(image), case["eval_logits"], atol=FEATURES)
    assert differing(background_seed(padded), case["eval_bkg_mask"]) == 0

    height, width = case["bs_binary"].shape
    crop = image[..., :height, :width]
    block = found.open(crop)
    logits = found.decode(block)
    close(logits, case["train_logits"], atol=FEATURES)
    seed = background_seed(block)
    assert differing(seed, case["train_bkg_mask"]) == 0

    pixels = case["image"][:height, :width].numpy()
    coarse = (~seed[0]).float().numpy()
    soft = solve(BilateralGrid(pixels), cv2.resize(coarse, (width, height)))
    close(torch.from_numpy(soft), case["bs_soft_output"], atol=PROBABILITIES)
    solved, trusted = colour_mask(coarse, pixels, as_published=True)
    assert differing(solved, case["bs_binary"]) == 0
    assert trusted == bool(case["bs_used"])
    published = partial(coloured_targets, image=crop, as_published=True)
    assert differing(published(~seed)[0], case["train_pseudo_label_after_bs"]) == 0
    assert differing(published(logits[:, 0] > 0)[0], case["self_mask_after_bs"]) == 0


def test_golden_cases_are_there() -> None:
    assert cases("found"), "no golden case of found"
