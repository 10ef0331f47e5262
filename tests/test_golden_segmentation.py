"""The published segmentation methods against what their authors' code computes.

Tolerances are those that the golden cases state: 2e-4 on features and cosines, 1e-3 on probabilities,
0.2 % of pixels in predictions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from golden_cases import Case, cases, class_scores, differing, query_cosines
from torch import Tensor

from ovseg.correlation import (
    IdentityCorrelation,
    NeighbourhoodCorrelation,
    QueryKeyCorrelation,
    SelfCorrelation,
)
from ovseg.encoders.positions import PositionRule
from ovseg.heads import SegmentationHead
from ovseg.methods import build_method
from ovseg.methods.clip_dinoiser import DinoiserConvolutions, clip_dinoiser
from ovseg.methods.clip_surgery import clip_surgery, feature_surgery
from ovseg.methods.proxyclip import proxyclip
from ovseg.scorer import Scorer
from ovseg.structures import PatchFeatures, Pictures, TextBank
from ovseg.windows import resize_image, resized_hw

PUBLISHED = PositionRule(as_published=True)
FEATURES, PROBABILITIES, PREDICTIONS = 2e-4, 1e-3, 0.002
close = partial(torch.testing.assert_close, rtol=0, check_dtype=False)


def tokens(case: Case, correlation, residual: bool, *, quick_gelu: bool = True) -> Tensor:
    """Projected tokens, prefix first, of the whole input with the remainder dropped."""
    scorer = Scorer(
        case.clip_encoder(quick_gelu=quick_gelu), correlation, residual=residual, positions=PUBLISHED
    )
    height, width = case.rgb.shape[-2:]
    with torch.no_grad():
        features = scorer.features(case.rgb[..., : height // 16 * 16, : width // 16 * 16])
    return torch.cat([features.prefix, features.grid.flatten(2).mT], dim=1)


def check_resize(case: Case) -> None:
    image = case["image"].numpy()
    ours = resize_image(image, resized_hw(image.shape[:2], case.settings["short"]))
    assert (torch.from_numpy(ours).permute(2, 0, 1) == (case.rgb[0] * 255).round().byte()).all()


@pytest.mark.parametrize("case", cases("sclip"))
def test_golden_clip(case: Case) -> None:
    close(tokens(case, None, True), case["vanilla_tokens_proj"], atol=FEATURES)
    close(tokens(case, QueryKeyCorrelation(), True), case["vanilla_tokens_proj"], atol=FEATURES)


@pytest.mark.parametrize("case", cases("sclip"))
def test_golden_sclip(case: Case) -> None:
    settings, bank = case.settings, case.bank
    size_hw = tuple(case["image"].shape[:2])
    check_resize(case)
    close(tokens(case, SelfCorrelation(("q", "k")), True), case["whole_tokens_proj"], atol=FEATURES)
    encoder = case.clip_encoder(quick_gelu=True)
    build = partial(
        build_method, "sclip", encoder, temperature=float(settings["logit_scale"]), as_published=True
    )
    head = SegmentationHead(threshold=settings["prob_thd"])

    whole = build(crop=None, stride=None)(case.pictures, bank, size_hw)
    close(query_cosines(whole, size_hw)[:, ::3, ::3], case["whole_query_logits_s3"], atol=FEATURES)
    close(class_scores(whole, size_hw)[:, ::3, ::3], case["whole_probs_s3"], atol=PROBABILITIES)
    assert differing(head(whole)[0].labels, case["whole_pred"]) <= PREDICTIONS

    window = dict(crop=settings["slide_crop"], stride=settings["slide_stride"])
    slide = build(**window)(case.pictures, bank, size_hw)
    close(query_cosines(slide, size_hw), case["slide_query_logits"], atol=FEATURES)
    close(class_scores(slide, size_hw), case["slide_probs"], atol=PROBABILITIES)
    assert differing(head(slide)[0].labels, case["slide_pred"]) <= PREDICTIONS

    steps = settings["pamr_steps_in_pamr_run"]
    refined = build(**window, pamr_steps=steps)(case.pictures, bank, size_hw)
    close(query_cosines(refined, size_hw)[:, ::3, ::3], case["slide_pamr_query_logits_s3"], atol=FEATURES)
    area = SegmentationHead(threshold=settings["prob_thd"], area_threshold=settings["area_thd_in_area_run"])
    assert differing(area(refined)[0].labels, case["slide_pamr_area_pred"]) <= PREDICTIONS


@pytest.mark.parametrize("case", cases("clearclip"))
def test_golden_clearclip(case: Case) -> None:
    settings, bank = case.settings, case.bank
    size_hw = tuple(case["image"].shape[:2])
    check_resize(case)
    variants = {
        "vanilla": QueryKeyCorrelation(),
        "MaskCLIP": IdentityCorrelation(),
        "SCLIP": SelfCorrelation(("q", "k")),
        "ClearCLIP": SelfCorrelation(("q",)),
    }
    for name, correlation in variants.items():
        for residual, suffix in ((True, "res"), (False, "nores")):
            ours = tokens(case, correlation, residual)[:, 1:]
            close(
                ours, case[f"tokens_proj_{name}_{suffix}"], atol=FEATURES, msg=lambda m, n=name: f"{n}: {m}"
            )

    encoder = case.clip_encoder(quick_gelu=True)
    build = partial(
        build_method, "clearclip", encoder, temperature=float(settings["logit_scale"]), as_published=True
    )
    head = SegmentationHead(threshold=settings["prob_thd"])
    whole = build(crop=None, stride=None)(case.pictures, bank, size_hw)
    close(class_scores(whole, size_hw)[:, ::3, ::3], case["whole_probs_s3"], atol=PROBABILITIES)
    assert differing(head(whole)[0].labels, case["whole_pred"]) <= PREDICTIONS

    slide = build(crop=settings["slide_crop"], stride=settings["slide_stride"])(case.pictures, bank, size_hw)
    close(query_cosines(slide, size_hw), case["slide_query_logits"], atol=FEATURES)
    close(class_scores(slide, size_hw), case["slide_probs"], atol=PROBABILITIES)
    assert differing(head(slide)[0].labels, case["slide_pred"]) <= PREDICTIONS

    padded = build(crop=128, stride=settings["slide_stride"])(case.pictures, bank, size_hw)
    close(query_cosines(padded, size_hw)[:, ::3, ::3], case["slide128_query_logits_s3"], atol=FEATURES)


@pytest.mark.parametrize("case", cases("naclip"))
def test_golden_naclip(case: Case) -> None:
    settings, bank = case.settings, case.bank
    size_hw = tuple(case["image"].shape[:2])
    std = settings["gaussian_std"]
    check_resize(case)
    near = NeighbourhoodCorrelation(std)
    close(tokens(case, near, False), case["whole_tokens_proj"], atol=FEATURES)
    variants = {
        "reduced_nonly": (NeighbourhoodCorrelation(std, "none"), False),
        "reduced_kk": (SelfCorrelation(("k",)), False),
        "reduced_vanilla": (QueryKeyCorrelation(), False),
        "vanilla_naclip": (near, True),
        "vanilla_csa": (SelfCorrelation(("q", "k")), True),
        "vanilla_vanilla": (None, True),
    }
    for name, (correlation, residual) in variants.items():
        ours = tokens(case, correlation, residual)
        close(ours, case[f"variant_{name}_tokens_proj"], atol=FEATURES, msg=lambda m, n=name: f"{n}: {m}")

    encoder = case.clip_encoder(quick_gelu=True)
    options = dict(temperature=float(settings["logit_scale"]), std_cells=std, as_published=True)
    build = partial(build_method, "naclip", encoder, **options)
    head = SegmentationHead(threshold=settings["prob_thd"])

    def check(score_map, probabilities: Tensor, prediction: Tensor, step: int) -> None:
        scores = class_scores(score_map, size_hw)
        scores = scores / scores.sum(dim=0)  # what the code returns beside its prediction
        close(scores[:, ::step, ::step], probabilities, atol=PROBABILITIES)
        assert differing(head(score_map)[0].labels, prediction) <= PREDICTIONS

    whole = build(crop=None, stride=None, pamr_steps=0)(case.pictures, bank, size_hw)
    check(whole, case["whole_probs"], case["whole_pred"], 1)
    steps = settings["pamr_steps_in_pamr_run"]
    refined = build(crop=None, stride=None, pamr_steps=steps)(case.pictures, bank, size_hw)
    check(refined, case["whole_pamr_probs_s3"], case["whole_pamr_pred"], 3)
    window = dict(crop=settings["slide_crop"], stride=settings["slide_stride"], pamr_steps=0)
    slide = build(**window)(case.pictures, bank, size_hw)
    input_hw = tuple(case.rgb.shape[-2:])
    at_input = build(**window)(case.pictures, bank)
    close(query_cosines(at_input, input_hw), case["slide_query_logits_inputres"], atol=FEATURES)
    check(slide, case["slide_probs_s3"], case["slide_pred"], 3)


@pytest.mark.parametrize("case", cases("proxyclip"))
def test_golden_proxyclip(case: Case) -> None:
    settings, bank = case.settings, case.bank
    size_hw = tuple(case["image"].shape[:2])
    check_resize(case)
    encoder = case.clip_encoder(quick_gelu=True)
    guide = case.dino_encoder(patch=8)
    build = partial(
        proxyclip,
        encoder,
        guide,
        temperature=float(settings["logit_scale"]),
        shift=settings["beta"],
        sharpness=settings["gamma"],
        as_published=True,
    )
    window = case.rgb[..., :112, :112]
    with torch.no_grad():
        close(guide(window).grid, case["win0_dino_feats"], atol=FEATURES)
        tokens = build(crop=None).features(window)
        close(tokens.grid.flatten(2).mT, case["win0_tokens_proj"], atol=FEATURES)
        batch = case["batch2_windows"] * encoder.std + encoder.mean
        close(guide(batch).grid, case["batch2_dino_feats"], atol=FEATURES)
        together = build(crop=None).features(batch).grid.flatten(2).mT
        close(together, case["batch2_tokens_proj"], atol=FEATURES)
        ours = build(crop=None, as_published=False).features(batch).grid.flatten(2).mT
        assert (ours - case["batch2_tokens_proj"]).abs().max() > FEATURES  # theirs depends on the neighbours
        custom = build(crop=None)
        given = PatchFeatures(case["custom_ex_feats"], torch.zeros(1, 0, 20), (112, 112))
        block = encoder.open(window, positions=PUBLISHED)
        affinity = custom.correlation(block, given)
        mixed = affinity.mix(block.values_on(affinity.hw, 0))
        closed = encoder.close(mixed, hw=affinity.hw, num_prefix=0, image_hw=(112, 112))
        close(closed.grid.flatten(2).mT, case["custom_tokens_proj"], atol=FEATURES)

    whole_window = build(crop=None)(Pictures(window), bank)
    close(query_cosines(whole_window, (112, 112)), case["win0_query_logits"], atol=FEATURES)
    slide = build(crop=settings["slide_crop"], stride=settings["slide_stride"], max_batch=1)(
        case.pictures, bank, size_hw
    )
    close(query_cosines(slide, size_hw), case["slide_query_logits"], atol=FEATURES)
    close(class_scores(slide, size_hw)[:, ::3, ::3], case["slide_probs_s3"], atol=PROBABILITIES)
    head = SegmentationHead(threshold=settings["prob_thd"])
    assert differing(head(slide)[0].labels, case["slide_pred"]) <= PREDICTIONS


@pytest.mark.parametrize("case", cases("maskclip_dinoiser"))
def test_golden_maskclip(case: Case) -> None:
    settings, bank = case.settings, case.bank
    size_hw = tuple(case["image"].shape[:2])
    check_resize(case)
    encoder = case.clip_encoder(quick_gelu=False)
    scorer = build_method(
        "maskclip",
        encoder,
        crop=None,
        stride=None,
        temperature=float(settings["softmax_scale"]),
        as_published=True,
    )
    windows = scorer.windows.windows(tuple(case.rgb.shape[-2:]), encoder.patch_hw)
    padded = windows.cut(case.rgb, encoder.mean)
    assert tuple(padded.shape) == tuple(case["padded_input_shape"].tolist())
    with torch.no_grad():
        features = scorer.features(padded)
    close(features.grid, case["dense_feats_unnormalised"], atol=FEATURES)
    close(scorer(case.pictures, bank).probabilities, case["probs_lowres"], atol=PROBABILITIES)

    slide = build_method(
        "maskclip",
        encoder,
        crop=settings["slide_crop"],
        stride=settings["slide_stride"],
        temperature=float(settings["softmax_scale"]),
        as_published=True,
    )(case.pictures, bank, size_hw)
    close(class_scores(slide, size_hw), case["slide_probs"], atol=PROBABILITIES)
    assert differing(SegmentationHead()(slide)[0].labels, case["slide_pred"]) <= PREDICTIONS


@pytest.mark.parametrize("case", cases("clip_dinoiser"))
def test_golden_clip_dinoiser(case: Case) -> None:
    settings = case.settings
    with_background = case.bank
    without = replace(with_background, background=frozenset())
    size_hw = tuple(case["image"].shape[:2])
    check_resize(case)
    encoder = case.clip_encoder(quick_gelu=False)
    state = {name: value for name, value in case.weights.items() if not name.startswith("clip.")}
    convolutions = DinoiserConvolutions(*reversed(state["obj_proj.weight"].shape[:2]))
    convolutions.load_state_dict(state, strict=True)
    build = partial(
        clip_dinoiser,
        encoder,
        convolutions.eval(),
        temperature=float(settings["softmax_scale"]),
        threshold=settings["gamma"],
        tap=settings["feats_idx"],
        sure=settings["delta"],
        as_published=True,
    )
    scorer = build(crop=None, stride=None)
    padded = scorer.windows.windows(tuple(case.rgb.shape[-2:]), encoder.patch_hw).cut(case.rgb, encoder.mean)
    with torch.no_grad():
        block = encoder.open(padded, positions=scorer.positions, ffn_taps=[scorer.tap])
        inner = block.ffn_taps[scorer.tap]
        close(inner, case["inter_feats_ln2"], atol=FEATURES)
        correlation, objectness = convolutions(inner[:, 1:].mT.unflatten(-1, block.hw))
        close(correlation.flatten(), case["corrs_raw"].flatten(), atol=FEATURES)
        close(objectness, case["bkg_logits"], atol=FEATURES)
        close(scorer.features(padded).grid, case["refined_feats"], atol=FEATURES)
    close(scorer(case.pictures, without).probabilities, case["probs_lowres_nobkg"], atol=PROBABILITIES)
    close(scorer(case.pictures, with_background).probabilities, case["probs_lowres_bkg"], atol=PROBABILITIES)

    slide = build(crop=settings["slide_crop"], stride=settings["slide_stride"])
    head = SegmentationHead()
    plain = slide(case.pictures, without, size_hw)
    close(class_scores(plain, size_hw)[:, ::3, ::3], case["slide_probs_nobkg_s3"], atol=PROBABILITIES)
    assert differing(head(plain)[0].labels, case["slide_pred_nobkg"]) <= PREDICTIONS
    backed = slide(case.pictures, with_background, size_hw)
    assert differing(head(backed)[0].labels, case["slide_pred_bkg"]) <= PREDICTIONS
    close(class_scores(backed, size_hw), case["slide_probs_bkg"], atol=PROBABILITIES)


@pytest.mark.parametrize("case", cases("clip_surgery"))
def test_golden_clip_surgery(case: Case) -> None:
    encoder = case.clip_encoder(quick_gelu=True, rounded_statistics=False)
    scorer = clip_surgery(encoder, short_side=None)
    image = case["input"] * encoder.std + encoder.mean
    with torch.no_grad():
        features = scorer.features(image)
    tokens = torch.cat([features.prefix, features.grid.flatten(2).mT], dim=1)
    close(tokens, case["tokens_proj"], atol=FEATURES)
    unit = torch.nn.functional.normalize(tokens, dim=-1)
    ours = feature_surgery(unit, unit[:, 0], case["text"])
    close(ours, case["similarity_surgery"], atol=FEATURES)
    bank = TextBank(case["text"], torch.arange(len(case["text"])), tuple(map(str, range(len(case["text"])))))
    close(
        scorer(Pictures(image), bank).cosine.flatten(2).mT, case["similarity_surgery"][:, 1:], atol=FEATURES
    )


def test_golden_cases_are_there() -> None:
    for method in (
        "sclip",
        "clearclip",
        "naclip",
        "maskclip_dinoiser",
        "proxyclip",
        "clip_dinoiser",
        "clip_surgery",
    ):
        assert cases(method), f"no golden case of {method}"
