"""ExCEL against what its authors' code computes; tolerances as the golden case states them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from golden_cases import Case, cases, differing

from ovseg.methods.excel import ExcelScorer, excel, seeds
from ovseg.structures import TextBank
from ovseg.text.enrichment import enrich, enrich_bank

close = partial(torch.testing.assert_close, rtol=0, check_dtype=False, atol=2e-4)


def scorer(case: Case, **options: object) -> ExcelScorer:
    encoder = case.clip_encoder(quick_gelu=True, rounded_statistics=False)
    return excel(encoder, short_side=None, **({"as_published": True} | options))


def bank(case: Case) -> TextBank:
    """Foreground classes of one query each, then all other prompts as one class."""
    classes, queries = case["maps_tokens_by_class"].shape[-1], len(case["text"])
    owner = torch.arange(queries).clamp_max(classes)
    return TextBank(case["text"], owner, tuple(map(str, range(classes + 1))), background=frozenset({classes}))


@pytest.mark.parametrize("case", cases("excel_svc_tse"))
def test_golden_calibration(case: Case) -> None:
    method = scorer(case)
    encoder = method.encoder
    image = case["input"] * encoder.std + encoder.mean
    attention = []

    def watch(index: int, query: torch.Tensor, key: torch.Tensor) -> None:
        weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)[0]
        dual = index >= len(encoder.tower.blocks) - method.dual_blocks
        attention.append(weights.sum(dim=0) if dual else weights.mean(dim=0))

    with torch.no_grad():
        for name, adapted in (("tokens_proj", None), ("tokens_proj_ex_feats", case["ex_feats"])):
            features = method.features(image, adapted, watch)
            close(torch.cat([features.prefix, features.grid.flatten(2).mT], dim=1), case[name])
    close(torch.stack(attention[: len(attention) // 2]), case["attn_weights"])


@pytest.mark.parametrize("case", cases("excel_svc_tse"))
def test_golden_enrichment(case: Case) -> None:
    attributes = case["attr_bank"].T
    close(enrich_bank(bank(case), attributes).embeddings, case["text_enriched"])
    classes = case["maps_tokens_by_class"].shape[-1]
    close(enrich(case["text"][:classes], attributes), case["text_enriched"][:classes])


@pytest.mark.parametrize("case", cases("excel_svc_tse"))
def test_golden_seeds(case: Case) -> None:
    words, everything = enrich_bank(bank(case), case["attr_bank"].T), range(len(bank(case).names) - 1)
    image, present = case["image"].numpy(), case["cls_present"].tolist()
    close(
        seeds(scorer(case), image, words, everything).cams.flatten(1).T,
        case["maps_tokens_by_class"][0],
        atol=1e-3,
    )
    found = seeds(scorer(case), image, words, present)
    close(found.spread, case["cams_refined"], atol=1e-3)
    close(found.scores, case["cams_with_bg"], atol=1e-3)
    theirs = case["label"].long()
    background = len(everything)
    assert differing(found.labels, torch.where(theirs == 0, background, theirs - 1)) <= 0.002

    ours = seeds(scorer(case, as_published=False), image, words, present)
    assert (ours.cams - found.cams).abs().max() > 0.01


def test_a_golden_case_is_there() -> None:
    assert cases("excel_svc_tse")
