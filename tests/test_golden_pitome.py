"""Token merging against the authors' code (tests/golden/pitome)."""

from __future__ import annotations

import json

import pytest
import timm.models.vision_transformer
import torch
import torch.nn.functional as F
from golden_cases import Case, cases
from torch import Tensor

from ovseg.encoders.token_merging import Membership, TokenMerging, TokenStream, energy
from ovseg.encoders.towers import TimmTrunk

CASES = cases("pitome")
RULES = {"pitome": "pitome", "pitome_bsm": "pitome_bsm", "tome": "tome_bsm", "text": "text"}


def settings_of(case: Case) -> dict:
    return json.loads((case.folder / "settings.json").read_text())


def merging_of(case: Case, rule: str = "pitome") -> TokenMerging:
    settings = settings_of(case)
    return TokenMerging(
        float(settings["keep_ratio"]), float(settings["margin"]), float(settings["alpha"]), rule
    )


def matrix(step: Membership) -> Tensor:
    return F.one_hot(step.owner, step.length).mT


def close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_energy(case: Case) -> None:
    merging = merging_of(case)
    unit = F.normalize(case["metric"][:, 1:], dim=-1)
    found = energy(unit, merging._likeness(merging.margin))
    close(found, case["energy"])
    assert torch.equal(found.argsort(dim=1, descending=True), case["order"])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_rules(case: Case, rule: str) -> None:
    name, merging, sizes = RULES[rule], merging_of(case, rule), case["size"][..., 0]
    step = merging.plan(case["metric"], margin=merging.margin)
    close(step.sizes(sizes), case[f"{name}_size"][..., 0])
    close(step.mean(case["x"], sizes), case[f"{name}_x"])
    if f"{name}_source" in case.arrays:
        assert torch.equal(matrix(step), case[f"{name}_source"].long())
        close(step.mean(case["x"], torch.ones_like(sizes)), case[f"{name}_x_unweighted_mean"])


@pytest.mark.parametrize("case", CASES)
def test_block(case: Case) -> None:
    width, heads = case["x"].shape[-1], int(settings_of(case)["block_heads"])
    trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=16,
        patch_size=8,
        embed_dim=width,
        depth=1,
        num_heads=heads,
        mlp_ratio=float(settings_of(case)["mlp_ratio"]),
        num_classes=0,
    ).eval()
    trunk.blocks[0].load_state_dict(case.weights, strict=True)
    stream = TokenStream(case["x"], merging_of(case), depth=1, num_prefix=1)
    with torch.no_grad():
        stream.run(TimmTrunk(trunk).blocks[0], 0)
    close(stream.tokens, case["block_out"])
    close(stream.sizes, case["block_size"][..., 0])
    assert stream.members is not None
    assert torch.equal(matrix(stream.members), case["block_source"].long())
