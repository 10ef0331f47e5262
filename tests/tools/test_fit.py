"""The command line of few-shot fitting: from a folder of examples to a vocabulary that changes results."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from support import load_tool, random_image, tiny_clip

from ovseg.inferencer import Inferencer
from ovseg.text.vocabulary import Vocabulary

TOOL = Path(__file__).parents[2] / "tools" / "fit.py"
SMALL = {"short_side": 64, "crop": 64, "stride": 32}
OPTIONS = ["--method", "maskclip", "--encoder", "tiny", "--device", "cpu", "--templates", "none", "--opts"]
OPTIONS += [f"{key}={value}" for key, value in SMALL.items()]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ovseg.inferencer.load_clip", lambda *_, **__: tiny_clip())
    return load_tool(TOOL)


def paint(kind: str, seed: int) -> np.ndarray:
    pixels = random_image(64, 96, seed)
    channel = {"red": 1, "green": 0}[kind]  # the other way round: here words know nothing
    pixels[:] = pixels // 8
    pixels[..., channel] += 190
    return pixels


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    for kind in ("red", "green"):
        for number in range(3):
            folder = tmp_path / "examples" / kind
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(paint(kind, number)).save(folder / f"{number}.png")
            Image.fromarray(np.full((64, 96), 255, np.uint8)).save(folder / f"{number}_mask.png")
    return tmp_path / "examples"


@pytest.mark.parametrize("ending", ["json", "safetensors"])
def test_fitted_words_change_results(
    tool: ModuleType, examples: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"words.{ending}"
    words = ["--classes", "green, red, blue"]
    assert tool.main(["--examples", str(examples), "-o", str(out), *words, *OPTIONS]) == 0
    printed = capsys.readouterr().out
    assert "a random model for tests" in printed
    assert "2 classes from 6 images; by words alone: blue" in printed
    segment = Inferencer("maskclip", encoder="tiny", device="cpu", **SMALL)
    assert segment.bank(str(out))[1].prototypes.names == ("green", "red")
    for kind, label in (("green", 0), ("red", 1)):
        (found,) = segment([paint(kind, seed=7)], str(out), templates="none")
        assert (found.labels == label).mean() > 0.95
        (by_words,) = segment([paint(kind, seed=7)], "green, red, blue", templates="none")
        assert (by_words.labels == label).mean() < 0.5


def test_given_strength_and_quiet(
    tool: ModuleType, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "words.json"
    arguments = ["--examples", str(examples), "-o", str(out), "--strength", "0.25", "-q", *OPTIONS]
    assert tool.main(arguments) == 0
    assert capsys.readouterr().out == ""
    made = Vocabulary.parse(out)
    assert made.names == ("green", "red")
    assert made.prototypes.strength == 0.25
    assert made.prototypes.made_with["method"] == "maskclip"
    assert made.prototypes.made_with["options"]["short_side"] == 64


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["-o", "words.txt"], 2, "written as .json or .safetensors"),
        (["-o", "w.json", "--least-share", "0"], 2, "--least-share is above 0"),
        (["-o", "w.json", "--strength", "-1"], 2, "--strength is at least 0"),
        (["-o", "w.json", "--examples", "nowhere"], 2, "no such folder of examples: nowhere"),
        (["-o", "w.json", "--classes", "red, blue"], 2, "'green' is not a class of the vocabulary"),
        (["-o", "w.json", "--opts", "crop"], 2, "takes KEY=VALUE"),
    ],
)
def test_mistakes(
    tool: ModuleType,
    examples: Path,
    arguments: list[str],
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tool.main(["--examples", str(examples), *OPTIONS, *arguments]) == status
    assert message in capsys.readouterr().err


def test_masks_that_do_not_fit(
    tool: ModuleType, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(examples / "red" / "0_mask.png")
    assert tool.main(["--examples", str(examples), "-o", str(tmp_path / "w.json"), *OPTIONS]) == 1
    assert "0_mask.png is 8x8 (HxW) and 0.png 64x96" in capsys.readouterr().err
