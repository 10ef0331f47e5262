"""The command line: exit status, messages, what is printed. The model is a fake, but for the last test."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_helpers import FakeSegmenter
from support import load_tool

from ovseg import console
from ovseg.inputs import ImageFile
from ovseg.runs import Outcome

TOOL = Path(__file__).parents[2] / "tools" / "infer.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool as a module, with a fake model: `tool.made` lists those that were built."""
    module = load_tool(TOOL)
    module.made = []

    def build(arguments: Any, tasks: Any, options: dict, *, keep_scores: bool) -> FakeSegmenter:
        module.made.append(FakeSegmenter(method=arguments.method, options=options))
        return module.made[-1]

    monkeypatch.setattr(module, "build_predictor", build)
    return module


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number, name in enumerate(["a.png", "b.jpg", "sub/c 猫.png"]):
        pixels = np.random.default_rng(number).integers(1, 255, (20, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def test_everything_goes_well(
    tool: ModuleType, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert tool.main([str(photos), "--classes", "dark, bright", "-o", str(out)]) == 0
    printed, errors = capsys.readouterr()
    assert "a fake: it knows nothing" in printed
    assert "a.png" in printed
    assert "%, dark " in printed or "%, bright " in printed
    assert "3 of 3 images" in printed
    assert str(out / "overlays") in printed
    assert errors == "", "no bar where there is no terminal"
    assert json.loads((out / "classes.json").read_text())["classes"][1]["name"] == "bright"
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert settings["method"] == tool.build_parser().get_default("method")
    assert settings["templates"] == "imagenet80"
    assert [each["name"] for each in settings["vocabulary"]["classes"]] == ["dark", "bright"]

    assert tool.main([str(photos), "--classes", "dark, bright", "-o", str(out)]) == 0
    assert "3 done earlier" in capsys.readouterr().out


def test_some_images_fail(
    tool: ModuleType, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "bad.jpg").write_bytes(b"")
    assert tool.main([str(photos), "-c", "dark, bright", "-o", str(tmp_path / "out")]) == 1
    printed, errors = capsys.readouterr()
    assert "3 of 4 images" in printed
    assert "bad.jpg: the file is empty" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no input"),
        (["PHOTOS"], "no classes"),
        (["PHOTOS/none", "-c", "cat"], "no such file or folder"),
        (["EMPTY", "-c", "cat"], "no image found"),
        (["PHOTOS", "-c", ""], "class"),
        (["PHOTOS", "-c", "cat, dog, cat"], "twice"),
        (["PHOTOS", "-c", "cat", "--formats", "labels,jpeg2"], "unknown format 'jpeg2'"),
        (["PHOTOS", "-c", "cat", "--opacity", "55"], "expected 0 to 1"),
        (["PHOTOS", "-c", "cat", "--batch-size", "0"], "at least 1"),
        (["PHOTOS", "-c", "cat", "--opts", "window"], "KEY=VALUE"),
        (["PHOTOS", "-c", "cat", "--matte", "white"], "#ffffff"),
    ],
)
def test_usage_errors(
    tool: ModuleType,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    filled = [
        each.replace("PHOTOS", str(photos)).replace("EMPTY", str(tmp_path / "empty")) for each in arguments
    ]
    assert tool.main([*filled, "-o", str(out)]) == 2
    printed, errors = capsys.readouterr()
    assert message in errors
    assert errors.startswith("error: ")
    assert "Traceback" not in errors + printed
    assert not out.exists()


def test_unknown_method_is_a_usage_error(photos: Path, tmp_path: Path) -> None:
    """With the real inferencer: the message names the methods and no weights are looked for."""
    module = load_tool(TOOL)
    stderr = io.StringIO()
    old, sys.stderr = sys.stderr, stderr
    try:
        status = module.main([str(photos), "-c", "cat", "--method", "maskclop", "-o", str(tmp_path / "out")])
    finally:
        sys.stderr = old
    assert status == 2
    assert "Did you mean 'maskclip'" in stderr.getvalue()


def test_other_settings_are_refused_and_overwritten(
    tool: ModuleType, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert tool.main([str(photos), "-c", "dark, bright", "-o", out]) == 0
    assert tool.main([str(photos), "-c", "dark, middle, bright", "-o", out]) == 2
    assert "vocabulary.classes: was dark, bright, now dark, middle, bright" in capsys.readouterr().err
    assert tool.main([str(photos), "-c", "dark, middle, bright", "-o", out, "--overwrite"]) == 0


def test_ctrl_c_says_how_to_go_on(
    tool: ModuleType,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [str(photos), "-c", "dark, bright", "-o", str(tmp_path / "out")]
    note = console.Progress.note

    def interrupt(self: Any, outcome: Any) -> None:
        note(self, outcome)
        if self.finished == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(console.Progress, "note", interrupt)
    assert tool.main(arguments) == 130
    assert "2 of 3 images are done" in capsys.readouterr().err
    monkeypatch.setattr(console.Progress, "note", note)
    assert tool.main(arguments) == 0
    assert "1 of 3 images" in capsys.readouterr().out
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_bar_on_a_terminal_only(
    tool: ModuleType, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert tool.main([str(photos), "-c", "dark, bright", "-o", str(tmp_path / "out")]) == 0
    assert "3/3" in terminal.getvalue()
    assert "image/s" in terminal.getvalue()

    progress = console.Progress()
    progress.start(2)
    image = ImageFile(Path("x"), "x")
    progress.note(Outcome(image, {}, skipped=True))
    progress.note(Outcome(image, {}))
    progress.close()
    assert progress._bar.format_dict["initial"] == 1, "what was done earlier is not part of the rate"


def test_options_reach_the_method(tool: ModuleType, photos: Path, tmp_path: Path) -> None:
    options = ["window=(224, 336)", "short_side=448", "name=plain text", "flag=true", "none=none", "x=1e-3"]
    arguments = [
        str(photos),
        "-c",
        "dark, bright",
        "-o",
        str(tmp_path / "out"),
        "--limit",
        "1",
        "--opts",
        *options,
    ]
    assert tool.main(arguments) == 0
    assert tool.made[0].settings["options"] == {
        "window": (224, 336),
        "short_side": 448,
        "name": "plain text",
        "flag": True,
        "none": None,
        "x": 0.001,
    }
    assert sum(tool.made[0].batches) == 1


def test_table_fits_any_terminal(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    from ovseg.runs import RunSummary

    record = {
        "image": "a folder/" * 12 + "猫.jpg",
        "classes": [{"name": f"class {i}", "share": 0.05} for i in range(20)],
        "seconds": 0.25,
    }
    for width in (60, 80, 200):
        console.print_table(
            RunSummary(done=1, records=[record, {**record, "classes": [], "image": "x\n\x1b"}]), width
        )
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3
        assert len({console._width(line) for line in lines}) == 1
        assert console._width(lines[0]) <= width
        assert "猫.jpg" in lines[1]


def test_help_is_instant_and_shows_defaults() -> None:
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, str(TOOL), "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - begin < 2
    assert "(default: auto)" in done.stdout
    assert "examples:" in done.stdout
    assert "exit status" in done.stdout


def test_checks_come_before_torch(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path[:0] = [{str(TOOL.parents[1])!r}, {str(TOOL.parent)!r}]
import infer
status = infer.main([{str(tmp_path / "none")!r}, "-c", "cat"])
assert "torch" not in sys.modules
sys.exit(status)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "no such file or folder" in done.stderr


@pytest.mark.skipif(
    not (resources.files("ovseg") / "bundled" / "clip.safetensors").is_file(),
    reason="weights not in the package",
)
def test_the_bundled_model(tmp_path: Path) -> None:
    """The real thing in its own process, as a user runs it: silent on stderr, and the same from Python."""
    photo = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (96, 128, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(photo)
    command = [
        sys.executable,
        str(TOOL),
        str(photo),
        "-c",
        "dog, pizza",
        "--encoder",
        "bundled",
        "--device",
        "cpu",
    ]
    command += [
        "--method",
        "maskclip",
        "--templates",
        "simple",
        "-o",
        str(tmp_path / "out"),
        "--formats",
        "labels,overlay,scores",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "photographs are not" in done.stdout, "the notice of what the model knows"
    from ovseg.inferencer import Inferencer

    inferencer = Inferencer("maskclip", encoder="bundled", device="cpu")
    expected = next(iter(inferencer([pixels], "dog, pizza", templates="simple")))
    with Image.open(tmp_path / "out/labels/photo.png") as labels:
        assert (np.array(labels) == expected.labels).all()
