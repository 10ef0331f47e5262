"""tools/benchmark.py: tiny networks through the code that measures the published ones."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support import load_tool

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool() -> ModuleType:
    return load_tool(ROOT / "tools" / "benchmark.py")


@pytest.fixture
def cases() -> Iterator[ModuleType]:
    name = "benchmark_cases"
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / "methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


def tiny(cases: ModuleType, method: str, **options: Any) -> Any:
    return cases.Case(method, size_hw=(60, 90), repeats=1, tiny=True, **options)


@pytest.mark.parametrize(
    "method",
    ["clip", "rgb-control", "proxyclip", "clip-dinoiser", "clip-dinoiser-teacher", "corrclip", "trident"],
)
def test_floor_is_the_same_encoders_on_the_same_windows(cases: ModuleType, method: str) -> None:
    case = tiny(cases, method)
    image = np.zeros((60, 90, 3), np.uint8)
    scorer = cases.build_scorer(case, cases.build_parts(case), {"short_side": 64, "crop": 48, "stride": 32})
    batches = cases.window_batches(scorer, image)
    assert all(batch.shape[1] == 3 for batch in batches)
    forwards = cases.floor_calls(case, scorer, image)
    names = {"proxyclip": 2, "corrclip": 2, "clip-dinoiser-teacher": 3, "trident": 2}
    sam = method == "trident"
    assert len(forwards) == names.get(method, 1) * len(batches) + sam
    clip = [pixels for _, pixels in forwards[: len(batches)]]
    for ours, theirs in zip(batches, clip, strict=True):
        height, width = (side // 16 * 16 for side in ours.shape[-2:])
        torch.testing.assert_close(theirs, ours[..., :height, :width])


def test_measure(cases: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    case = {"method": "proxyclip", "size_hw": [60, 90], "repeats": 1, "tiny": True, "dtype": "bf16"}
    cases.main([json.dumps(case)])
    figures = json.loads(capsys.readouterr().out)
    assert figures["seconds"] > 0
    assert figures["ratio"] == pytest.approx(figures["seconds"] / figures["floor_seconds"])
    assert figures["extra_mb"] > 0
    assert figures["windows"] >= 2
    cases.main([json.dumps(case | {"method": "bare"})])
    bare = json.loads(capsys.readouterr().out)
    assert bare["speedup"] == pytest.approx(bare["float32_seconds"] / bare["seconds"])


def test_memory_of_a_call(cases: ModuleType) -> None:
    meter = cases.Meter("cpu")
    assert 200 < meter.extra_mb(lambda: np.ones(2**28, np.uint8).sum()) < 400


def test_table_is_printed_and_written(
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures = dict(seconds=2.0, floor_seconds=1.9, ratio=1.04, extra_mb=712.3, windows=6.0)
    bare = dict(float32_seconds=4.0, seconds=1.0, speedup=4.0)
    asked: list[dict[str, Any]] = []

    def measured(case: dict[str, Any]) -> dict[str, float] | None:
        asked.append(case)
        return None if case["method"] == "sclip" else bare if case["method"] == "bare" else figures

    monkeypatch.setattr(tool, "run_case", measured)
    page = tmp_path / "speed.md"
    begin, end = (
        "<!-- begin: methods-cpu-bf16 (written by tools/benchmark.py) -->",
        "<!-- end: methods-cpu-bf16 -->",
    )
    page.write_text(f"above\n{begin}\nold\n{end}\nbelow\n")
    words = ["--methods", "trident", "proxyclip", "--device", "cpu", "--dtype", "bf16", "--write", str(page)]
    assert tool.main(words) == 0
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
    assert re.findall(r"^\| (\w+) \| 6 \| 2 \| 1.9 \| 1.04 \| 712 \|$", text, re.M) == [
        "trident",
        "proxyclip",
    ]
    assert "4.00 x as fast" in text
    assert "python tools/benchmark.py --methods trident" in text
    assert [case["method"] for case in asked] == ["trident", "proxyclip", "bare"]
    assert asked[0]["size_hw"] == (375, 500)
    assert tool.main(["--methods", "sclip", "clip", "--device", "cpu"]) == 1  # one could not be measured
    assert "| clip |" in capsys.readouterr().out


def test_a_failing_case_says_why(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.run_case({"method": "clip", "sice_hw": 3}) is None
    assert "sice_hw" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "tridant"], "Did you mean 'trident'?"),
        (["--refine", "pamir"], "Did you mean 'pamr'?"),
        (["--repeats", "0"], "at least 1"),
        (["--device", "cpu", "--dtype", "fp16"], "refused on the CPU"),
    ],
)
def test_messages(
    tool: ModuleType, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(words) == 2
    assert message in capsys.readouterr().err


def test_heads_are_measured(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "speed.md"
    page.write_text(
        "<!-- begin: heads-cpu (written by tools/benchmark.py) -->\nold\n<!-- end: heads-cpu -->\n"
    )
    given = ["--suite", "heads", "--tiny", "--size", "90", "120", "--repeats", "1", "--device", "cpu"]
    status = tool.main([*given, "--write", str(page)])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "four tasks" in page.read_text()
    assert "old" not in page.read_text()
    assert "1,203 classes" in printed.out
