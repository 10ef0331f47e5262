"""The bundled SAM's training: batches are what they say, losses are right, runs learn and resume exactly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from segment_anything.modeling import Sam
from support import load_tool
from torch import Tensor

from ovseg.encoders.bundled_sam import build_sam, load_bundled_sam
from ovseg.scenes import SceneSettings
from ovseg.training.sam_batches import PROMPTS, SMALL_MASK, Prompts, SamBatches, coarse_masks, draw_prompts
from ovseg.training.sam_evaluate import centre_of
from ovseg.training.sam_pretrain import (
    attention_loss,
    decode,
    mask_losses,
    measured_iou,
    open_encoder,
    preprocess,
    step_loss,
)

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "image_encoder": {
        "img_size": 64,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "use_rel_pos": True,
        "window_size": 3,  # 8 is no multiple: windows are padded
        "global_attn_indexes": [1],
        "out_chans": 16,
    },
    "prompt_encoder": {"mask_in_chans": 4},
    "mask_decoder": {
        "num_multimask_outputs": 3,
        "iou_head_depth": 2,
        "iou_head_hidden_dim": 16,
        "transformer": {"depth": 1, "mlp_dim": 32, "num_heads": 2},
    },
}
EASY = {"objects": [1, 2], "size": [0.5, 0.9], "shapes": 0.2, "defects": 0.0}
WEIGHTS = {"focal": 5.0, "dice": 1.0, "spare": 0.1, "iou": 1.0, "attention": 0.2}


@pytest.fixture
def sam() -> Sam:
    torch.manual_seed(0)
    model = build_sam(TINY)
    with torch.no_grad():  # relative positions begin at zero, where they could not be wrong
        for name, parameter in model.named_parameters():
            if "pos" in name:
                parameter.normal_(std=0.5)
    return model


@pytest.fixture(scope="module")
def batches() -> SamBatches:
    easy = SceneSettings(objects=(1, 2), size=(0.5, 0.9))
    return SamBatches(
        seed=3, batch=3, segments=3, sizes_hw=[(64, 64), (48, 64)], side=64, patch=8, settings=easy
    )


def test_batches_repeat_and_hold_what_they_ask_for(batches: SamBatches) -> None:
    batch, again = batches[1], batches[1]
    assert batch.images.shape == (3, 3, 48, 64)
    assert torch.equal(batch.images, again.images)
    assert torch.equal(batch.truths, again.truths)
    assert not torch.equal(batches[3].images, batch.images)
    assert batch.truths.flatten(2).any(-1).all()
    share = batch.share.unflatten(2, (8, 8))
    torch.testing.assert_close(share[:, :, :6].sum(1), torch.ones(3, 6, 8))
    assert (share[:, :, 6:] == 0).all()  # below the image is padding
    for prompts, twin in zip(batch.prompts, again.prompts, strict=True):
        assert (prompts.boxes is None) == (twin.boxes is None)


def test_points_and_boxes_lie_where_the_segment_is() -> None:
    mask = np.zeros((48, 64), bool)
    mask[10:30, 40:62] = True
    truths = np.stack([mask, ~mask])
    for seed in range(30):
        prompts = draw_prompts(truths, 64, 32, np.random.default_rng(seed))
        assert prompts.points is not None or prompts.boxes is not None
        if prompts.points is not None:
            xy, labels = prompts.points
            for truth, places, inside in zip(truths, xy.long(), labels, strict=True):
                found = truth[places[:, 1], places[:, 0]]
                np.testing.assert_array_equal(found, inside.numpy() == 1)
            assert (labels[:, 0] == 1).all()
        if prompts.boxes is not None:
            np.testing.assert_allclose(prompts.boxes[0], [40, 10, 62, 30], atol=4.5)
            assert (prompts.boxes >= 0).all()
            assert (prompts.boxes <= torch.tensor([64.0, 48, 64, 48])).all()
    assert math.isclose(sum(PROMPTS.values()), 1.0)


def test_mask_prompts_are_bad_copies_of_the_truth_of_two_sizes() -> None:
    mask = torch.zeros(1, 48, 64, dtype=torch.bool)
    mask[:, 8:40, 8:40] = True
    small, gaps = 0, []
    for seed in range(20):
        coarse = coarse_masks(mask, 64, 64, np.random.default_rng(seed))
        assert coarse.shape == (1, 1, 64, 64)
        gaps.append(float(coarse[..., 16:32, 16:32].mean() - coarse[..., 52:, 52:].mean()))
        if coarse.abs().max() <= SMALL_MASK:
            small += 1
            assert coarse.min() >= 0
        else:
            assert coarse.min() < 0 < coarse.max()
    assert np.mean(np.array(gaps) > 0) > 0.9
    assert 3 < small < 17


def test_the_opened_encoder_and_decoder_are_the_models_own(sam: Sam) -> None:
    with torch.no_grad():
        pixels = torch.randn(2, 3, 64, 64)
        embedding, attention = open_encoder(sam, pixels)
        torch.testing.assert_close(embedding, sam.image_encoder(pixels))
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 2, 64))
        prompts = Prompts(points=(torch.tensor([[[5.0, 9.0]]]), torch.ones(1, 1)))
        logits, iou = decode(sam, embedding[:1], prompts)
        sparse, dense = sam.prompt_encoder(prompts.points, None, None)
        pe = sam.prompt_encoder.get_dense_pe()
        for several, place in ((False, slice(0, 1)), (True, slice(1, 4))):
            masks, rated = sam.mask_decoder(embedding[:1], pe, sparse, dense, several)
            torch.testing.assert_close(logits[:, place], masks)
            torch.testing.assert_close(iou[:, place], rated)


def test_pixels_are_normalised_before_they_are_padded(sam: Sam) -> None:
    image = torch.randint(0, 256, (1, 3, 40, 64), dtype=torch.uint8)
    torch.testing.assert_close(preprocess(sam, image)[0], sam.preprocess(image[0].float()))
    assert (preprocess(sam, image)[..., 40:, :] == 0).all()


def test_losses_against_a_pixel_by_pixel_reference() -> None:
    torch.manual_seed(1)
    logits, truth = 3 * torch.randn(2, 3, 4, 5), torch.rand(2, 4, 5).round()
    truth[0, 0, 0] = 0.25
    focal, dice = mask_losses(logits, truth)
    iou = measured_iou(logits, truth)
    for k in range(2):
        for m in range(3):
            loss = both = total = 0.0
            hits = union = 0
            for value, wanted in zip(
                logits[k, m].flatten().tolist(), truth[k].flatten().tolist(), strict=True
            ):
                p = 1 / (1 + math.exp(-value))
                cross = -wanted * math.log(p) - (1 - wanted) * math.log(1 - p)
                p_true = wanted * p + (1 - wanted) * (1 - p)
                alpha = 0.25 * wanted + 0.75 * (1 - wanted)
                loss += alpha * (1 - p_true) ** 2 * cross / 20
                both, total = both + p * wanted, total + p + wanted
                hits += value > 0 and wanted >= 0.5
                union += value > 0 or wanted >= 0.5
            assert focal[k, m].item() == pytest.approx(loss, rel=1e-4)
            assert dice[k, m].item() == pytest.approx(1 - (2 * both + 1) / (total + 1), rel=1e-4)
            assert iou[k, m].item() == pytest.approx(hits / union, rel=1e-5)


def test_attention_loss_is_zero_for_an_even_look_at_the_own_region() -> None:
    share = torch.zeros(1, 2, 6)
    share[0, 0, :2], share[0, 1, 2:5] = 1, 1  # the last patch is padding
    even = (share.transpose(1, 2) @ (share / share.sum(2, keepdim=True))).clamp(min=1e-12)[:, None]
    assert attention_loss(even, share).item() == pytest.approx(0, abs=1e-5)
    uniform = torch.full((1, 3, 6, 6), 1 / 6)
    expected = (2 * math.log(6 / 2) + 3 * math.log(6 / 3)) / 5
    assert attention_loss(uniform, share).item() == pytest.approx(expected, rel=1e-5)
    assert attention_loss(torch.eye(6)[None, None], share).item() > 3  # a look at itself only is no grouping
    mixed = torch.full((1, 2, 6), 0.5)
    assert attention_loss(uniform, mixed).item() == 0


def test_steps_on_one_batch_lower_the_loss(batches: SamBatches) -> None:
    torch.manual_seed(0)
    sam, batch = build_sam(TINY), batches[0]
    batch = replace(batch, images=batch.images[:2], truths=batch.truths[:2], share=batch.share[:2])
    batch = replace(batch, prompts=batch.prompts[:2])
    optimizer = torch.optim.AdamW(sam.parameters(), lr=6e-3)
    reports = []
    for _ in range(55):
        optimizer.zero_grad()
        loss, report = step_loss(sam, batch, WEIGHTS)
        loss.backward()
        optimizer.step()
        reports.append(report)
    for term in ("single", "best", "attention"):
        assert reports[-1][term] < 0.75 * reports[0][term], term
    assert reports[-1]["measured"] > reports[0]["measured"] + 0.1
    unused = [name for name, parameter in sam.named_parameters() if parameter.grad is None]
    assert all(name.startswith("prompt_encoder") for name in unused)  # prompts that this batch does not have


def test_logits_on_padding_do_not_matter(
    sam: Sam, batches: SamBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    padding = torch.zeros(32, 32)
    padding[24:] = 50  # images of 48 x 64, logits at half the size
    loss, report = step_loss(sam, batches[1], WEIGHTS)

    def spoilt(*args: object) -> tuple[Tensor, Tensor]:
        logits, iou = decode(*args)
        return logits + padding, iou

    monkeypatch.setattr("ovseg.training.sam_pretrain.decode", spoilt)
    torch.testing.assert_close(step_loss(sam, batches[1], WEIGHTS)[0], loss)
    assert all(math.isfinite(value) for value in report.values())


def test_the_centre_is_the_innermost_pixel() -> None:
    mask = np.zeros((20, 30), bool)
    mask[4:13, 10:19] = True
    assert centre_of(mask) == (14, 8)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    shipped = yaml.safe_load((ROOT / "configs/bundled/sam.yaml").read_text(encoding="utf-8"))
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    shipped |= {"model": str(tmp_path / "tiny.json"), "warmup": 2, "log_every": 1, "save_every": 3}
    shipped |= {"eval_every": 1000, "eval_scenes": 2}
    stage = {"sizes_hw": [[64, 64], [48, 64]], "batch": 2, "segments": 2, "scenes": EASY, "lr": [3e-3, 1e-3]}
    shipped["stages"] = [stage | {"name": "a", "steps": 4}, stage | {"name": "b", "steps": 4}]
    path = tmp_path / "sam.yaml"
    path.write_text(yaml.safe_dump(shipped))
    return path


def test_a_run_resumes_exactly_and_exports(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovseg.training.sam_run.evaluate", lambda *args, **options: dict.fromkeys(KEYS, 0.5))
    tool = load_tool(ROOT / "tools" / "train_bundled_sam.py")
    through, broken = tmp_path / "through", tmp_path / "broken"
    assert tool.main([str(config), "--work-dir", str(through)]) == 0
    assert tool.main([str(config), "--work-dir", str(broken), "--stop-after", "5"]) == 0
    assert tool.main([str(config), "--work-dir", str(broken), "--resume"]) == 0
    whole, resumed = (
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (through, broken)
    )
    assert [row["step"] for row in whole] == [row["step"] for row in resumed] == list(range(1, 9))
    for term in ("loss", "single", "best", "iou", "attention", "measured"):
        np.testing.assert_allclose([r[term] for r in whole], [r[term] for r in resumed], atol=1e-3)

    out = tmp_path / "out"
    out.mkdir()
    assert tool.main([str(config), "--work-dir", str(through), "--export", str(out / "sam.safetensors")]) == 0
    (out / "sam.json").write_text(json.dumps(TINY))
    loaded = load_bundled_sam(out)
    trained = torch.load(through / "checkpoint.pt", weights_only=True)["model"]
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, trained[name], atol=1e-3, rtol=1e-3)


KEYS = ("box", "point", "point_best", "ground", "box_itself", "iou_error")
