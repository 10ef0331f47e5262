"""FOUND's decoder and CLIP-DINOiser's convolutions learn, resume exactly, and export what loads."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from found_support import tiny_dino
from safetensors import safe_open
from support import load_tool, random_image, tiny_encoder

from ovseg.encoders.found import FoundEncoder, background_seed, load_decoder
from ovseg.errors import CheckpointError
from ovseg.methods.clip_dinoiser import DinoiserConvolutions
from ovseg.methods.dinoiser_loading import dinoiser_from_file
from ovseg.training.dinoiser import Lesson, dinoiser_losses, dinoiser_optimizer, lesson_of, prepare_lesson
from ovseg.training.found import border_seed, coloured_targets, found_loss, found_optimizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool(ROOT / "tools" / "train_bundled_dinoiser.py")


def config(name: str, folder: Path, steps: int, **changes: object) -> Path:
    """A shipped config on tiny pictures."""
    shipped = yaml.safe_load((ROOT / f"configs/bundled/{name}.yaml").read_text(encoding="utf-8"))
    shipped |= {"warmup": 1, "log_every": 1, "save_every": 2, "eval_every": 1000, "eval_scenes": 1, **changes}
    easy = {"objects": [1, 2], "size": [0.4, 0.7]}
    lr = shipped["stages"][0]["lr"][:1] * 2
    stage = {"name": "a", "sizes_hw": [[48, 64]], "batch": 4, "steps": steps, "lr": lr, "scenes": easy}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(shipped | {"stages": [stage]}))
    return path


def log(folder: Path) -> dict[int, dict]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows}


def run_twice(tool: ModuleType, path: Path, folder: Path, stop: int) -> dict[int, dict]:
    """Once through, once broken off and resumed: the same losses."""
    through, broken = folder / "through", folder / "broken"
    assert tool.main([str(path), "--work-dir", str(through)]) == 0
    assert tool.main([str(path), "--work-dir", str(broken), "--stop-after", str(stop)]) == 0
    assert tool.main([str(path), "--work-dir", str(broken)]) == 2  # a run is there: --resume must be said
    assert tool.main([str(path), "--work-dir", str(broken), "--resume"]) == 0
    whole, resumed = log(through), log(broken)
    assert sorted(whole) == sorted(resumed)
    for step, row in whole.items():
        for name in set(row) - {"stage", "images_per_s", "minutes"}:
            np.testing.assert_allclose(row[name], resumed[step][name], atol=2e-4)
    return whole


def test_found_learns_resumes_exactly_and_exports(tool: ModuleType, tmp_path: Path) -> None:
    path = config("found", tmp_path, 6, seed_steps=5)
    rows = run_twice(tool, path, tmp_path, 3)
    assert rows[5]["seed"] < rows[1]["seed"] - 0.05
    assert "self" in rows[6]
    assert "seed" not in rows[6]
    figures = json.loads((tmp_path / "through" / "eval.jsonl").read_text())
    assert 0 <= figures["object_iou"] <= 1
    weights = tmp_path / "found.safetensors"
    assert tool.main([str(path), "--work-dir", str(tmp_path / "through"), "--export", str(weights)]) == 0
    trained = torch.load(tmp_path / "through" / "checkpoint.pt", weights_only=True)["model"]
    torch.testing.assert_close(load_decoder(weights).weight.data, trained["weight"], atol=1e-3, rtol=1e-3)
    with safe_open(weights, "pt") as stored:
        assert stored.metadata()["steps"] == "6 of 6"


def test_convolutions_learn_resume_exactly_and_export(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovseg.training.dinoiser_run.DinoiserTrainer.evaluate", lambda *args: {})
    torch.manual_seed(0)
    decoder = torch.nn.Conv2d(192, 1, 1)
    torch.save({"decoder": decoder.state_dict()}, tmp_path / "found.pt")
    path = config("dinoiser", tmp_path, 8, found=str(tmp_path / "found.pt"), hidden=16)
    rows = run_twice(tool, path, tmp_path, 3)
    first, last = (np.mean([rows[step]["pairs"] for step in steps]) for steps in ((1, 2), (7, 8)))
    assert last < first - 0.01
    weights = tmp_path / "dinoiser.safetensors"
    assert tool.main([str(path), "--work-dir", str(tmp_path / "through"), "--export", str(weights)]) == 0
    trained = torch.load(tmp_path / "through" / "checkpoint.pt", weights_only=True)["model"]
    loaded = dinoiser_from_file(weights).state_dict()
    for name, value in trained.items():
        torch.testing.assert_close(loaded[name], value, atol=1e-3, rtol=1e-3)


def test_convolutions_overfit_a_lesson() -> None:
    torch.manual_seed(1)
    image = torch.from_numpy(random_image(48, 80)).permute(2, 0, 1)[None].float() / 255
    found = FoundEncoder(tiny_dino()).eval().requires_grad_(False)
    guide = tiny_dino(patch=16, seed=5).with_kind("v")
    lesson = prepare_lesson(image, tiny_encoder(), guide, found, tap=-2)
    assert 0 < lesson.alike.float().mean() < 1
    assert 0 < lesson.objects.float().mean() < 1
    convolutions = DinoiserConvolutions(64, 32)
    optimizer, schedule = dinoiser_optimizer(convolutions)
    optimizer.param_groups[0]["lr"] = 1e-2
    losses = []
    for _ in range(60):
        pairs, patches = dinoiser_losses(convolutions, lesson)
        optimizer.zero_grad()
        (pairs + patches).backward()
        optimizer.step()
        schedule.step()
        losses.append((pairs.item(), patches.item()))
    assert losses[-1][0] < losses[0][0] - 0.05
    assert losses[-1][1] < losses[0][1] - 0.1


def test_losses_are_the_formula() -> None:
    torch.manual_seed(2)
    convolutions = DinoiserConvolutions(8, 4)
    inner = torch.randn(2, 8, 3, 5)
    alike, objects = torch.rand(2, 15, 15) > 0.5, torch.rand(2, 1, 3, 5) > 0.5
    pairs, patches = dinoiser_losses(convolutions, Lesson(inner, alike, objects))
    features = convolutions.obj_proj(inner).flatten(2)
    logit = torch.cosine_similarity(features[:, :, :, None], features[:, :, None], dim=1).clamp(min=0)
    chance = logit.sigmoid()
    expected = -torch.where(alike, chance.log(), (1 - chance).log()).mean()
    torch.testing.assert_close(pairs, expected)
    unit = inner / inner.norm(dim=1, keepdim=True)
    chance = torch.sigmoid(convolutions.bkg_decoder(unit))
    torch.testing.assert_close(patches, -torch.where(objects, chance.log(), (1 - chance).log()).mean())


def test_targets_come_to_the_towers_grid() -> None:
    inner, guide = torch.randn(1, 8, 3, 5), torch.randn(1, 6, 6, 10)
    lesson = lesson_of(inner, guide, torch.full((1, 1, 6, 10), 2.0), threshold=0.2)
    assert lesson.alike.shape == (1, 15, 15)
    assert lesson.objects.all()
    pooled = torch.nn.functional.avg_pool2d(guide, 2).flatten(2)
    cosine = torch.cosine_similarity(pooled[:, :, :, None], pooled[:, :, None], dim=1)
    assert (lesson.alike == (cosine >= 0.2)).all()


def test_found_overfits_and_its_terms_add_up() -> None:
    torch.manual_seed(3)
    found = FoundEncoder(tiny_dino())
    image = torch.from_numpy(random_image(64, 96)).permute(2, 0, 1)[None].float() / 255
    block = found.open(image)
    seed = background_seed(block)
    optimizer, schedule = found_optimizer(found)
    totals = []
    for _ in range(12):
        loss, terms = found_loss(found, block, image, seed)
        assert loss.item() == pytest.approx(1.5 * terms["refined"] + terms["seed"], rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        totals.append(terms["seed"])
    assert totals[-1] < totals[0] - 0.1
    loss, terms = found_loss(found, block, image, None)
    assert loss.item() == pytest.approx(1.5 * terms["refined"] + 4 * terms["self"], rel=1e-5)


def test_targets_of_one_image_do_not_depend_on_others() -> None:
    images = torch.stack([torch.from_numpy(random_image(48, 80, seed)).permute(2, 0, 1) for seed in (0, 1)])
    masks = torch.zeros(2, 6, 10, dtype=torch.bool)
    masks[:, 2:5, 3:8] = True
    together = coloured_targets(masks, images / 255)
    alone = torch.cat([coloured_targets(masks[i : i + 1], images[i : i + 1] / 255) for i in range(2)])
    assert (together == alone).all()


def test_border_seed_is_what_the_border_looks_like() -> None:
    image = torch.full((1, 3, 64, 96), 0.2)
    image[..., 16:48, 24:72] = torch.tensor([0.9, 0.3, 0.1]).view(3, 1, 1)
    dino = tiny_dino()
    with torch.no_grad():
        dino.trunk.pos_embed.zero_()
    block = FoundEncoder(dino).open(image)
    seed = border_seed(block, least_cosine=0.99)[0]
    assert seed[0].all()
    assert seed[:, 0].all()
    assert not seed[2:6, 3:9].any()


def test_no_convolutions_in_a_file(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model_state_dict": {"obj_proj.bias": torch.zeros(4)}}, tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=r"obj_proj\.weight, bkg_decoder\.weight, bkg_decoder\.bias miss"
    ):
        dinoiser_from_file(tmp_path / "x.pt")
