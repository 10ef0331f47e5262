"""The benchmarks of training, of examples and of long runs: what they write, without their hours."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ovseg.images import read_image
from ovseg.scenes import SceneSet

ROOT = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    spec = spec_from_file_location(f"bench_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_trained_config_has_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    training = load("training")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert all((ROOT / "configs" / f"{name}.py").is_file() for name in training.CONFIGS)
    names = [next(each for each in training.CONFIGS if "denseclip" in each)]
    record = {"seconds": 90.4, "iterations": 160, "commit": "`abc`"}
    found = {
        (names[0], seed): record | {"before": [0.1, 19.9], "after": [20.0 + seed, 26.5]} for seed in (0, 7)
    }
    lines = training.table(names, [0, 7], found, pictures=True)
    assert lines[2].startswith(
        f"| `{names[0]}` | mIoU, decoder | 0.1, **20.0** | 0.1, **27.0** | 160 | 90, 90 |"
    )
    assert "19.9, **26.5**" in lines[3]
    assert "Commit `abc`" in lines[-1]


def test_figures_are_read_from_what_the_tool_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    training = load("training")
    asked = []

    def run(*command: str) -> str:
        asked.append(command)
        return "a log\nsome: anomaly/image_auroc 64.80  anomaly/pixel_auroc 68.80  anomaly/aupro 42.70"

    monkeypatch.setattr(training, "run", run)
    name = next(each for each in training.CONFIGS if "anomalyclip" in each)
    assert training.measure(name, ("x.pth",), 7) == [64.8, 68.8, 42.7]
    assert asked == [
        ("tools/test.py", f"configs/{name}.py", "x.pth", "--cfg-options", "randomness.seed=7")
    ], "once for all figures of one answer"


def test_examples_are_masks_of_one_class(tmp_path: Path) -> None:
    examples = load("examples")
    names = SceneSet("test").classes[-2:]
    examples.draw_examples(tmp_path, names, 2, seed=0)
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(names)
    for name in names:
        for number in range(2):
            mask, image = (
                read_image(tmp_path / name / f"{number}{kind}.png")[..., 0] for kind in ("_mask", "")
            )
            assert mask.shape == image.shape
            assert set(np.unique(mask)) <= {0, 255}
            assert (mask > 0).sum() >= examples.LEAST_PIXELS


def test_memory_is_told_part_by_part() -> None:
    rows = load("many_images").rows([(0, 5.0), (10, 100.0), (40, 110.0), (60, 90.0), (100, 120.0)], 100, 2)
    assert rows == [["0 to 50", "100 to 110"], ["50 to 100", "90 to 120"]]
