"""Trident against what its authors' code computes, step by step.

Tolerances are those that the golden case states: 2e-4 on features, 5e-3 on refined scores, 0.5 % of pixels
after refinement.
"""

from __future__ import annotations

from functools import cached_property, partial

import numpy as np
import pytest
import torch
from golden_cases import Case, cases, class_scores, differing, query_cosines
from torch import Tensor

from ovseg.correlation.segments import cosine_thresholds, segment_rows
from ovseg.heads import SegmentationHead
from ovseg.methods.trident import TridentScorer, trident
from ovseg.refine.sam_masks import SamMasks
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures, Pictures
from ovseg.windows import resize_image

FEATURES, PROBABILITIES, REFINED, PREDICTIONS = 2e-4, 1e-3, 5e-3, 0.005
close = partial(torch.testing.assert_close, rtol=0, check_dtype=False)


class Published:
    """A case, run once."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.settings = case.settings
        self.encoder = case.clip_encoder(quick_gelu=True)
        self.guide = case.dino_encoder(patch=16)
        self.sam = case.sam_encoder()
        self.image = case["image"].numpy()
        self.size_hw: tuple[int, int] = self.image.shape[:2]

    def build(self, **changes) -> TridentScorer:
        settings = self.settings
        options = dict(
            crop=settings["crop"],
            stride=settings["stride"],
            shift=settings["beta"],
            sharpness=settings["gamma"],
            cosine_factor=settings["cos_fac"],
            keep_negative=settings["refine_neg_cos"],
            temperature=float(settings["logit_scale"]),
            coarse_threshold=settings["coarse"],
            min_iou=settings["iou"],
            min_area_px=settings["area"],
            as_published=True,
        )
        return trident(self.encoder, self.guide, self.sam, **(options | changes))

    @property
    def whole_patches_image(self) -> np.ndarray:
        height, width = (-(-side // 16) * 16 for side in self.size_hw)
        return resize_image(self.image, (height, width))

    @cached_property
    def features(self) -> DenseFeatures:
        return self.build().encode(Pictures(self.case.rgb, (self.image,)), self.size_hw)

    @cached_property
    def score_map(self) -> ScoreMap:
        return self.build().score(self.features, self.case.bank)


@pytest.fixture(scope="module")
def published(request: pytest.FixtureRequest) -> Published:
    return Published(request.param)


every_case = pytest.mark.parametrize("published", cases("trident"), indirect=True)


@every_case
@torch.no_grad()
def test_golden_splice(published: Published) -> None:
    case, scorer = published.case, published.build()
    encoder = published.encoder
    image = scorer.fit(case.rgb)
    close(((image - encoder.mean) / encoder.std)[..., ::2, ::2], case["processed_input_s2"], atol=FEATURES)
    windows = scorer.windows.windows(tuple(image.shape[-2:]), encoder.patch_hw)
    assert (torch.tensor(windows.boxes_yxyx) == 16 * case["window_coords_y1x1y2x2_tokens"]).all()
    pieces = windows.cut(image, encoder.mean)
    guides = published.guide(pieces).grid
    close(guides, case["dino_feats_windows"], atol=FEATURES)
    outputs = scorer.window_outputs(pieces, guides, 1)
    close(outputs.flatten(2).permute(2, 0, 1), case["win_attn_out_LBD"], atol=FEATURES)
    one_by_one = published.build(max_batch=1).window_outputs(pieces, guides, 1)
    close(one_by_one, outputs, atol=1e-5)
    assert scorer.splice(image).shape[-2:] == tuple(case["spliced_hw_tokens"].tolist())


def sam_affinity(published: Published, image: np.ndarray, **changes) -> Tensor:
    embedded = published.sam.embed([image], attention=True)
    options = dict(
        cosine_factor=published.settings["cos_fac"], keep_negative=published.settings["refine_neg_cos"]
    )
    rows = segment_rows(embedded.attention, 0, published.sam.valid_hw(embedded), **(options | changes))
    return torch.cat([weights for _, weights in rows])


@every_case
@torch.no_grad()
def test_golden_sam_correlation(published: Published) -> None:
    case, image = published.case, published.whole_patches_image
    embedded = published.sam.embed([image], attention=True)
    height, width = published.sam.valid_hw(embedded)
    close(embedded.embedding[..., :height, :width], case["sam_features_valid"], atol=FEATURES)
    values = embedded.attention.v[0].unflatten(1, embedded.attention.hw)[:, :height, :width].flatten(1, 2)
    thresholds = cosine_thresholds(
        torch.nn.functional.normalize(values, dim=-1),
        published.settings["cos_fac"],
        keep_negative=published.settings["refine_neg_cos"],
    )
    close(thresholds, case["sam_cos_threshold"].flatten(), atol=FEATURES)
    close(sam_affinity(published, image), case["sam_corr"], atol=FEATURES)
    half = image.shape[1] // 2
    close(sam_affinity(published, image[:, :half]), case["sam_corr_cityscapes_left"], atol=FEATURES)
    close(sam_affinity(published, image[:, half:]), case["sam_corr_cityscapes_right"], atol=FEATURES)


@every_case
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokens_proj", {}),
        ("tokens_proj_cos0", {"cosine_factor": 0.0}),
        ("tokens_proj_cos3_noneg", {"cosine_factor": 3.0, "keep_negative": False}),
        ("tokens_proj_cityscapes", {"halves": True}),
    ],
)
@torch.no_grad()
def test_golden_tokens(published: Published, name: str, changes: dict) -> None:
    scorer = published.build(**changes)
    canvas = scorer.splice(scorer.fit(published.case.rgb))
    pooled, _ = scorer.average(canvas, published.image)
    tokens = published.encoder.tower.finish(pooled.flatten(2).mT)
    close(tokens, published.case[name], atol=FEATURES)


@every_case
def test_golden_scores(published: Published) -> None:
    case, score_map, size_hw = published.case, published.score_map, published.size_hw
    close(query_cosines(score_map, size_hw)[:, ::3, ::3], case["query_logits_s3"], atol=FEATURES)
    close(class_scores(score_map, size_hw)[:, ::3, ::3], case["probs_norefine_s3"], atol=PROBABILITIES)
    head = SegmentationHead(threshold=published.settings["prob_thd"])
    assert differing(head(score_map)[0].labels, case["pred_norefine"]) <= PREDICTIONS


@every_case
@torch.no_grad()
def test_golden_prompts_and_masks(published: Published) -> None:
    case, masks, sam = published.case, published.build().refine[0], published.sam
    prompts = masks.prompts(published.features.sam, published.score_map, case["pred_norefine"].long())
    assert [len(each.boxes) for each in prompts] == case["refine_regions_per_class_call"].tolist()
    quality = []
    for call, prompt in enumerate(prompts):
        close(prompt.points, case[f"refine_call{call}_points"], atol=1e-4)
        close(prompt.boxes, case[f"refine_call{call}_boxes"], atol=1e-4)
        close(prompt.mask[0], case[f"refine_call{call}_mask_input"], atol=FEATURES)
        low_res, iou = sam.decode(
            published.features.sam,
            0,
            points=prompt.points,
            boxes=prompt.boxes,
            masks=prompt.mask,
            as_published=True,
        )
        close(low_res[:1], case[f"refine_call{call}_lowres"], atol=REFINED)
        quality.append(iou.flatten())
    close(torch.cat(quality), case["refine_iou_predictions"], atol=FEATURES)
    dense = sam.sam.prompt_encoder.mask_downscaling(prompts[0].mask[0])
    close(dense, case["refine_call0_dense_embed"], atol=REFINED)
    proper = sam.sam.prompt_encoder.mask_downscaling(prompts[0].mask)[0]
    assert (proper - dense).abs().max() > 0.05  # without the batch axis it is another embedding


@every_case
@torch.no_grad()
def test_golden_refinement(published: Published) -> None:
    case, masks, size_hw = published.case, published.build().refine[0], published.size_hw
    score_map, seen = published.score_map, published.features.sam
    labels = case["pred_norefine"].long()
    answers = [masks.ask(seen, 0, each) for each in masks.prompts(seen, score_map, labels)]
    before = class_scores(score_map, size_hw)
    scores = torch.zeros_like(before)
    for label, score in masks.scores(seen, score_map, answers, size_hw):
        scores[label] = score
    rejected = torch.stack([each.rejected for each in answers]).any(dim=0)[None, None].float()
    rejected = torch.nn.functional.interpolate(rejected, size=size_hw)[0]
    returned = torch.maximum(scores, rejected * before) if scores.any() else before
    close(returned[:, ::3, ::3], case["logits_refined_s3"], atol=REFINED)

    head = SegmentationHead(threshold=published.settings["prob_thd"])
    scorer = published.build()
    refined = scorer(Pictures(case.rgb, (published.image,)), case.bank, size_hw)
    assert differing(head(refined)[0].labels, case["pred_refined"]) <= PREDICTIONS
    assert differing(case["pred_norefine"], case["pred_refined"]) > 10 * PREDICTIONS


@every_case
def test_the_step_embeds_the_picture_itself_where_the_method_has_not(published: Published) -> None:
    settings = published.settings
    features = published.features
    step = SamMasks(
        published.sam,
        coarse_threshold=settings["coarse"],
        min_iou=settings["iou"],
        min_area_px=settings["area"],
    )
    head = SegmentationHead(threshold=settings["prob_thd"])
    alone = DenseFeatures(features.grid, features.resampling, pictures=features.pictures)
    labels = head(step(published.score_map, alone))[0].labels
    assert labels.shape == published.size_hw
    assert differing(labels, published.case["pred_norefine"]) > 0


def test_golden_case_is_there() -> None:
    assert cases("trident")
