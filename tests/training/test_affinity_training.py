"""The affinity ViT's training learns, resumes exactly, exports; its loss and figures against slow ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from support import load_tool

from ovseg.encoders.bundled_guide import load_bundled_guide
from ovseg.training.affinity import AffinityTrainer, pair_loss, patch_labels, readings, sample_patches
from ovseg.training.affinity_evaluate import proxy_reading, ranking

ROOT = Path(__file__).resolve().parents[2]
STEPS = 10


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool(ROOT / "tools" / "train_bundled_guide.py")


@pytest.fixture
def config() -> dict:
    """The shipped config, a thousand times smaller: two stages, a two-block model."""
    shipped = yaml.safe_load((ROOT / "configs/bundled/affinity.yaml").read_text(encoding="utf-8"))
    shipped["model"] |= {"img_size": 48, "embed_dim": 48, "depth": 2, "num_heads": 2}
    shipped |= {"warmup": 2, "log_every": 1, "save_every": 3, "eval_every": 1000, "eval_scenes": 1}
    easy = {"objects": [1, 2], "size": [0.5, 0.8], "camouflage": 0.0}
    shipped["stages"] = [
        {"name": "a", "sizes_hw": [[48, 48]], "batch": 12, "steps": 6, "lr": [3e-3, 3e-3], "scenes": easy},
        {"name": "b", "sizes_hw": [[40, 64]], "batch": 12, "steps": 4, "lr": [3e-3, 1e-3], "scenes": easy},
    ]
    return shipped


def log(folder: Path) -> dict[int, dict]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows}


def test_it_learns_resumes_exactly_and_exports(tool: ModuleType, config: dict, tmp_path: Path) -> None:
    path, through, broken = tmp_path / "affinity.yaml", tmp_path / "through", tmp_path / "broken"
    path.write_text(yaml.safe_dump(config))
    assert tool.main([str(path), "--work-dir", str(through)]) == 0
    assert tool.main([str(path), "--work-dir", str(broken), "--stop-after", "4"]) == 0
    assert tool.main([str(path), "--work-dir", str(broken)]) == 2  # a run is there: --resume must be said
    assert tool.main([str(path), "--work-dir", str(broken), "--resume"]) == 0

    whole, resumed = log(through), log(broken)
    assert sorted(whole) == sorted(resumed) == list(range(1, STEPS + 1))
    for kind in ("tokens", "k", "v", "qk"):
        ours, theirs = ([rows[step][kind] for step in range(1, STEPS + 1)] for rows in (whole, resumed))
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
        assert np.mean(ours[-3:]) < np.mean(ours[:2]) - 0.1, kind

    weights = tmp_path / "affinity.safetensors"
    assert tool.main([str(path), "--work-dir", str(through), "--export", str(weights)]) == 0
    with safe_open(weights, "pt") as stored:
        assert stored.metadata()["steps"] == f"{STEPS} of {STEPS}"
        assert "not DINO" in stored.metadata()["model"]
    trained = torch.load(through / "checkpoint.pt", weights_only=True)["model"]
    guide = load_bundled_guide(tmp_path)
    torch.testing.assert_close(guide.trunk.pos_embed, trained["pos_embed"], atol=1e-3, rtol=1e-3)
    assert json.loads(weights.with_suffix(".json").read_text())["validation"]["step"] == STEPS


def test_readings_are_what_the_guide_gives(config: dict) -> None:
    trainer = AffinityTrainer(config)
    trunk = trainer.model.eval()
    from ovseg.encoders.dino import DinoEncoder
    from ovseg.encoders.positions import PositionRule

    base, image = DinoEncoder(trunk, positions=PositionRule("size")), torch.rand(2, 3, 40, 64)
    for kind, features in readings(trunk, image).items():
        expected = base.with_kind(kind)(image).grid.flatten(2).mT  # type: ignore[arg-type]
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def slow_loss(features: np.ndarray, region: np.ndarray, name: np.ndarray, cut: float, sharp: float) -> float:
    sums = {"same": [0.0, 0.0], "other": [0.0, 0.0]}
    for b in range(len(features)):
        for i, r in enumerate(region[b]):
            for j, s in enumerate(region[b]):
                if i == j or r < 0 or s < 0 or (r != s and name[b, i] == name[b, j]):
                    continue
                x, y = features[b, i], features[b, j]
                cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
                chance = 1 / (1 + np.exp(-sharp * (cosine - cut)))
                weight = (np.sum(region[b] == r) * np.sum(region[b] == s)) ** -0.5
                kind = "same" if r == s else "other"
                sums[kind][0] -= weight * np.log(chance if r == s else 1 - chance)
                sums[kind][1] += weight
    return sum(0.5 * total / weight for total, weight in sums.values())


def test_pair_loss_against_loops() -> None:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(3, 11, 5))
    region = rng.integers(-1, 4, (3, 11))
    name = np.where(region == 3, 2, region)  # regions 2 and 3 are two things of one name
    ours = pair_loss(*map(torch.from_numpy, (features, region, name)), threshold=0.2, sharpness=6.0)
    assert float(ours) == pytest.approx(slow_loss(features, region, name, 0.2, 6.0), rel=1e-6)


def test_pair_loss_without_pairs_is_zero_and_finite() -> None:
    features = torch.zeros(1, 4, 3, requires_grad=True)
    region = torch.full((1, 4), -1)
    loss = pair_loss(features, region, region, threshold=0.2, sharpness=8.0)
    loss.backward()
    assert loss.item() == 0
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_labels_are_of_pure_patches_and_sampling_prefers_them(config: dict) -> None:
    batch = AffinityTrainer(config).batch(0)
    region, name = patch_labels(batch, 0.7)
    assert ((region >= 0) == (batch.share.amax(1) > 0.7)).all()
    assert 0 < (region < 0).sum() < region.numel() / 2
    for row, codes, names in zip(region, name, batch.region_names, strict=True):
        assert all(names[r] == names[c] for r, c in zip(row, codes, strict=True) if r >= 0)
    few = int((region >= 0).sum(1).min())
    drawn = sample_patches(region, few, np.random.default_rng(0))
    assert drawn.shape == (12, few)
    assert (region.gather(1, drawn) >= 0).all()
    assert all(len(set(row.tolist())) == few for row in drawn)


def test_figures_against_all_pairs() -> None:
    rng = np.random.default_rng(5)
    similarity, same = rng.normal(size=60), rng.random(60) < 0.4
    auc, precision = ranking(similarity, same)
    wins = similarity[same][:, None] > similarity[~same]
    assert auc == pytest.approx(wins.mean())
    at = [same[similarity >= value].mean() for value in similarity[same]]
    assert precision == pytest.approx(np.mean(at))


def test_proxy_reading_of_a_perfect_and_a_blind_guide() -> None:
    region = torch.tensor([0, 0, 0, 1, 1, 1])
    same = region[:, None] == region
    known = torch.ones(6, dtype=torch.bool)
    assert proxy_reading(same.float() * 2 - 1, same, known) == (1.0, 1.0)
    mass, reach = proxy_reading(torch.zeros(6, 6), same, known)
    assert (mass, reach) == (pytest.approx(0.4), 1.0)
