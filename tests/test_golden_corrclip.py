"""CorrCLIP v1 against what its authors' code computes; tolerances as the golden case states them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from golden_cases import Case, cases, class_scores, differing, query_cosines

from ovseg.correlation.regions import PUBLISHED_PADDING
from ovseg.heads import SegmentationHead
from ovseg.methods.corrclip import corrclip
from ovseg.regions import resize_regions
from ovseg.windows import resize_image, resized_hw

FEATURES, PROBABILITIES, PREDICTIONS = 2e-4, 1e-3, 0.002
close = partial(torch.testing.assert_close, rtol=0, check_dtype=False)


@pytest.mark.parametrize("case", cases("corrclip"))
def test_golden_corrclip(case: Case) -> None:
    settings, bank = case.settings, case.bank
    size_hw = tuple(case["image"].shape[:2])
    input_hw = tuple(case.rgb.shape[-2:])
    resized = resize_image(case["image"].numpy(), resized_hw(size_hw, min(input_hw)))
    assert (torch.from_numpy(resized).permute(2, 0, 1) == (case.rgb[0] * 255).round().byte()).all()
    build = partial(
        corrclip,
        case.clip_encoder(quick_gelu=True),
        case.dino_encoder(patch=8),
        crop=settings["crop"],
        stride=settings["stride"],
        temperature=float(settings["scale"]),
        as_published=True,
    )
    scorer = build()

    windows = scorer.windows.windows(input_hw, scorer.encoder.patch_hw)
    given = resize_regions(case["instance_mask"][None], input_hw)
    regions = windows.cut_regions(given, PUBLISHED_PADDING)
    pieces = windows.cut(case.rgb, scorer.encoder.mean)
    assert (regions[0] == case["win0_mask"]).all()
    with torch.no_grad():
        guide = F.normalize(scorer.guide(pieces[:1]).grid.flatten(2), dim=1).mT
        close(guide, case["win0_dino_qk_feats"], atol=FEATURES)
        first = scorer.features(pieces[:1], regions[:1]).grid
        close(first.flatten(2).mT, case["win0_tokens_proj"], atol=FEATURES)
        every = scorer.features(pieces, regions).grid
        close(every[:1], first, atol=1e-5)
    cosines = torch.einsum("dhw,qd->qhw", F.normalize(first[0], dim=0), case["text"])
    window_hw = tuple(pieces.shape[-2:])
    cosines = F.interpolate(cosines[None], size=window_hw, mode="bilinear")[0]
    close(cosines[:, ::2, ::2], case["win0_query_logits_s2"], atol=FEATURES)

    head = SegmentationHead(threshold=settings["thd"])
    slide = scorer(case.pictures, bank, size_hw)
    close(query_cosines(slide, size_hw)[:, ::3, ::3], case["slide_query_logits_s3"], atol=FEATURES)
    close(class_scores(slide, size_hw)[:, ::3, ::3], case["probs_s3"], atol=PROBABILITIES)
    assert differing(head(slide)[0].labels, case["pred_map_corrected"]) <= PREDICTIONS
    plain = build(voting=False)(case.pictures, bank, size_hw)
    assert differing(head(plain)[0].labels, case["pred_before_correction"]) <= PREDICTIONS


@pytest.mark.parametrize("case", cases("corrclip"))
def test_the_golden_case_tells_defects_apart(case: Case) -> None:
    """The lowest id is a region like any other unless it is 0."""
    bank = case.bank
    encoder, guide = case.clip_encoder(quick_gelu=True), case.dino_encoder(patch=8)
    shifted = replace(case.pictures, regions=(case.arrays["instance_mask"] + 1,))
    crops = dict(crop=case.settings["crop"], stride=case.settings["stride"])
    published, intended = (corrclip(encoder, guide, **crops, as_published=flag) for flag in (True, False))
    theirs = published(case.pictures, bank).cosine
    torch.testing.assert_close(published(shifted, bank).cosine, theirs)
    assert (intended(shifted, bank).cosine - theirs).abs().max() > 1e-2


def test_golden_case_is_there() -> None:
    assert cases("corrclip")
