"""SC-CLIP against what its authors' code computes; tolerances as the golden case states them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from golden_cases import Case, cases, class_scores, differing, query_cosines

from ovseg.correlation.self_correction import local_outlier_factor, outliers
from ovseg.encoders.positions import PositionRule
from ovseg.heads import SegmentationHead
from ovseg.methods.sc_clip import sc_clip

close = partial(torch.testing.assert_close, rtol=0, check_dtype=False)
#: What the case's README states of its six-block tower.
LAYERS = dict(middle_layer=3, early_layer=1, levels=(1, 4))


@pytest.mark.parametrize("case", cases("scclip"))
def test_golden_scclip(case: Case) -> None:
    settings = case.settings
    size_hw = tuple(case["image"].shape[:2])
    encoder = case.clip_encoder(quick_gelu=True)
    crop = settings["crop"]
    scorer = sc_clip(
        encoder,
        crop=crop,
        stride=settings["stride"],
        temperature=float(settings["scale"]),
        as_published=True,
        **LAYERS,
    )
    window = case.rgb[..., :crop, :crop]
    with torch.no_grad():
        block = encoder.open(window, positions=PositionRule(as_published=True))
        tokens = scorer.features(window).grid.flatten(2).mT
    patches = block.residual[:, 1:]
    close(local_outlier_factor(patches)[0], case["win0_lof"], atol=2e-4)
    assert outliers(patches)[0].nonzero()[:, 0].tolist() == case["win0_outlier_idx"].tolist()
    close(tokens, case["win0_tokens_proj"], atol=2e-4)

    score_map = scorer(case.pictures, case.bank, size_hw)
    close(query_cosines(score_map, size_hw)[:, ::3, ::3], case["slide_query_logits_s3"], atol=2e-4)
    close(class_scores(score_map, size_hw)[:, ::3, ::3], case["slide_probs_s3"], atol=1e-3)
    head = SegmentationHead(threshold=settings["thd"])
    assert differing(head(score_map)[0].labels, case["slide_pred"]) <= 0.002


@pytest.mark.parametrize("case", cases("scclip"))
def test_layers_follow_from_the_depth(case: Case) -> None:
    """The authors' choice for six blocks is the one that scaling by depth gives."""
    encoder = case.clip_encoder(quick_gelu=True)
    with torch.no_grad():
        ours = sc_clip(encoder).features(case.rgb[..., :112, :112]).grid
        stated = sc_clip(encoder, **LAYERS).features(case.rgb[..., :112, :112]).grid
    assert torch.equal(ours, stated)


def test_a_golden_case_is_there() -> None:
    assert cases("scclip")
