"""DenseCLIP against what its authors' code computes, at the tolerance that the golden case states."""

from __future__ import annotations

import re
from functools import partial

import open_clip
import pytest
import torch
import torch.nn.functional as F
from anomaly_support import settings_of
from golden_cases import Case, cases

from ovseg.encoders.pyramid import PyramidFeatures, VitPyramid, attention_pool
from ovseg.text.towers import ClipText
from ovseg.training.denseclip import PixelTextMatching, encode_prompted
from ovseg.training.denseclip_losses import box_score_loss, box_targets, score_map_loss

close = partial(torch.testing.assert_close, rtol=0, check_dtype=False, atol=1e-4)


def part(case: Case, prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in case.weights.items() if k.startswith(prefix)}


def text_tower(case: Case) -> ClipText:
    settings, state = settings_of(case), part(case, "text_encoder.")
    model = open_clip.CLIP(
        settings["joint_dim"],
        vision_cfg=dict(image_size=32, patch_size=16, width=32, layers=1, head_width=16),
        text_cfg=dict(
            context_length=len(state["positional_embedding"]),
            vocab_size=len(state["token_embedding.weight"]),
            width=settings["text_width"],
            heads=settings["text_heads"],
            layers=settings["text_blocks"],
        ),
        quick_gelu=True,
    )
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("visual.") or name == "logit_scale" for name in missing)
    return ClipText(model.eval().requires_grad_(False))


def pyramid_of(case: Case) -> PyramidFeatures:
    settings = settings_of(case)
    trained, other = settings["attnpool_trained_grid"]
    assert trained == other, "CLIP's pools are square"
    pool = open_clip.modified_resnet.AttentionPool2d(
        trained, settings["attnpool_in"], settings["attnpool_heads"], settings["joint_dim"]
    )
    pool.load_state_dict(part(case, "attnpool."))
    levels = tuple(case[f"c{stage}"] for stage in (2, 3, 4, 5))
    return PyramidFeatures(levels, *attention_pool(pool, levels[-1]))


def matching(case: Case, **options: object) -> PixelTextMatching:
    settings = settings_of(case)
    built = PixelTextMatching(
        settings["text_width"],
        settings["joint_dim"],
        contexts=settings["context_tokens"],
        temperature=1 / settings["tau"],
        decoder=dict(
            width=settings["decoder_width"],
            heads=settings["decoder_heads"],
            layers=settings["decoder_layers"],
        ),
        **options,
    )
    state = part(case, "context_decoder.")
    built.load_state_dict(
        {f"context_decoder.{name}": value for name, value in state.items()}
        | {"contexts": case["contexts"], "gamma": case["gamma"]}
    )
    return built.eval().requires_grad_(False)


@pytest.mark.parametrize("case", cases("denseclip"))
def test_golden_pool_and_words(case: Case) -> None:
    features = pyramid_of(case)
    close(features.image, case["global_feat"])
    close(features.grid, case["visual_embeddings"])
    close(features.context, case["visual_context"])
    model, text = matching(case), text_tower(case)
    unseen = encode_prompted(text, case["texts"], case["contexts"])
    close(unseen, case["text_embeddings_raw"])
    close(
        model.context_decoder(unseen.expand(len(features.context), -1, -1), features.context),
        case["text_diff"],
    )
    close(model.words(features, text, case["texts"]), case["text_embeddings"])
    close(
        model.words(features, text, case["texts"], model.encode(text, case["texts"])), case["text_embeddings"]
    )


@pytest.mark.parametrize("case", cases("denseclip"))
def test_golden_score_map(case: Case) -> None:
    features, text = pyramid_of(case), text_tower(case)
    found = matching(case)(features, text, case["texts"], dense_level=3)
    close(found.cosine, case["score_map"])
    close(found.levels[3], case["c5_concat"])
    close(found.words, F.normalize(case["text_embeddings"], dim=-1))
    for level in (0, 1, 2):
        close(found.levels[level], case[f"c{level + 2}"], atol=0)
    temperature = 1 / settings_of(case)["tau"]
    loss = score_map_loss(found.cosine, case["gt_seg"], temperature=temperature)
    close(loss, case["identity_loss"])

    detection = matching(case, appended="logits")(features, text, case["texts"], dense_level=3)
    classes = case["score_map"].shape[1]
    close(detection.levels[3][:, -classes:], case["det_score_map"], atol=1e-3)  # 14 times the cosine


@pytest.mark.parametrize("case", cases("denseclip"))
def test_golden_box_loss(case: Case) -> None:
    hw = case["det_seg_mask"].shape[2:]
    target, mask = box_targets(
        list(case["det_boxes"]),
        list(case["det_labels"]),
        classes=case["score_map"].shape[1],
        image_hw=(4 * hw[0], 4 * hw[1]),
        as_published=True,
    )
    close(target, case["det_seg_target"], atol=0)
    close(mask, case["det_seg_mask"], atol=0)
    loss = box_score_loss(case["score_map"], target, mask, temperature=1 / settings_of(case)["tau"])
    close(loss, case["det_seg_loss"])


def taps_of(case: Case, depth: int) -> list[int]:
    """The blocks that give the levels; the case's README says it, its settings do not."""
    readme = case.folder / "README.md"
    said = re.search(r"from blocks \[([\d, ]+)\]", readme.read_text()) if readme.is_file() else None
    return list(range(depth - 4, depth)) if said is None else [int(tap) - 1 for tap in said[1].split(",")]


@pytest.mark.parametrize("case", cases("denseclip"))
def test_golden_vit(case: Case) -> None:
    settings, state = settings_of(case), part(case, "vit.")
    depth = 1 + max(int(name.split(".")[2]) for name in state if "resblocks" in name)
    patch = state["conv1.weight"].shape[-1]
    visual = open_clip.transformer.VisionTransformer(
        image_size=round((len(state["positional_embedding"]) - 1) ** 0.5) * patch,
        patch_size=patch,
        width=len(state["class_embedding"]),
        layers=depth,
        heads=settings.get("vit_heads", settings["text_heads"]),
        mlp_ratio=4.0,
        output_dim=settings["joint_dim"],
        act_layer=open_clip.transformer.QuickGELU,
    )
    pyramid = VitPyramid(visual, taps=taps_of(case, depth), as_published=True)
    own = {name for name in state if name.startswith("fpn")}
    pyramid.load_state_dict(
        {name if name in own else f"visual.{name}": value for name, value in state.items()}
    )
    pyramid.eval()
    found = pyramid(case["vit_image"])
    for level, values in enumerate(found.levels):
        close(values, case[f"vit_f{level}"])
    close(found.image, case["vit_global"])
    close(found.grid, case["vit_dense"])

    pyramid.as_published = False
    assert (pyramid(case["vit_image"]).grid - case["vit_dense"]).abs().max() > 1e-4


def test_a_golden_case_is_there() -> None:
    assert cases("denseclip")
