"""The training script learns, resumes exactly, and exports what open_clip loads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from support import load_tool

from ovseg.training.clip_pretrain import shorten_merges

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 48, "patch_size": 16, "width": 48, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 40, "vocab_size": 4611, "width": 32, "heads": 2, "layers": 1},
    "init_logit_scale": 3.0,
    "init_logit_bias": -6.0,
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool(ROOT / "tools" / "train_bundled_clip.py")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The shipped config, a thousand times smaller: one process, two stages, a two-block model."""
    shipped = yaml.safe_load((ROOT / "configs/bundled/clip.yaml").read_text(encoding="utf-8"))
    (tmp_path / "model.json").write_text(json.dumps(TINY))
    shipped |= {
        "model": str(tmp_path / "model.json"),
        "processes": 1,
        "warmup": 2,
        "log_every": 1,
        "save_every": 5,
        "eval_every": 1000,
    }
    easy = {"objects": [1, 1], "size": [0.7, 1.0], "shapes": 0.2, "defects": 0.2, "two_backgrounds": 0.0}
    shipped["stages"] = [
        {"name": "a", "sizes_hw": [[48, 48]], "batch": 24, "steps": 8, "lr": [3e-3, 3e-3], "scenes": easy},
        {"name": "b", "sizes_hw": [[32, 48]], "batch": 24, "steps": 17, "lr": [3e-3, 1e-3], "scenes": easy},
    ]
    path = tmp_path / "clip.yaml"
    path.write_text(yaml.safe_dump(shipped))
    return path


def log(folder: Path) -> dict[int, dict]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows}


def test_it_learns_resumes_exactly_and_exports(
    tool: ModuleType, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovseg.training.clip_run.evaluate", lambda *args, **options: {})
    through, broken = tmp_path / "through", tmp_path / "broken"
    assert tool.main([str(config), "--work-dir", str(through)]) == 0
    assert tool.main([str(config), "--work-dir", str(broken), "--stop-after", "11"]) == 0
    assert tool.main([str(config), "--work-dir", str(broken)]) == 2  # a run is there: --resume must be said
    assert tool.main([str(config), "--work-dir", str(broken), "--resume"]) == 0

    whole, resumed = log(through), log(broken)
    assert sorted(whole) == sorted(resumed) == list(range(1, 26))
    for term in ("image", "caption", "patch", "region"):
        ours, theirs = ([rows[step][term] for step in range(1, 26)] for rows in (whole, resumed))
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
        assert np.mean(ours[-5:]) < np.mean(ours[:3]) - 0.02, term

    weights = tmp_path / "clip.safetensors"
    assert tool.main([str(config), "--work-dir", str(through), "--export", str(weights)]) == 0
    model = open_clip.CLIP(**TINY)
    model.load_state_dict({key: value.float() for key, value in load_file(weights).items()}, strict=True)
    trained = torch.load(through / "checkpoint.pt", weights_only=True)["model"]
    torch.testing.assert_close(model.visual.proj.detach(), trained["visual.proj"], atol=1e-3, rtol=1e-3)
    with safe_open(weights, "pt") as stored:
        assert stored.metadata()["steps"] == "25 of 25"


def test_unknown_keys_and_missing_runs_are_named(
    tool: ModuleType, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"no 'stages\.0\.step'"):
        tool.main([str(config), "--work-dir", str(tmp_path / "run"), "--set", "stages.0.step=3"])
    assert tool.main([str(config), "--work-dir", str(tmp_path / "none"), "--export", "x"]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_shipped_merges_are_the_first_of_clips(tmp_path: Path) -> None:
    shorten_merges(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz", tmp_path / "short.gz")
    shipped = ROOT / "ovseg" / "bundled" / "bpe_4096.txt.gz"
    assert gzip.decompress((tmp_path / "short.gz").read_bytes()) == gzip.decompress(shipped.read_bytes())
