"""tools/test.py: both of its ways, the table it writes, its messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from mm.conftest import CONFIGS, _quick_and_forgetful_mmengine, tiny_clip  # noqa: F401  # fixtures
from mm.layouts import LAYOUTS
from PIL import Image
from support import load_tool

from ovseg.answers import Answers
from ovseg.inferencer import Inferencer
from ovseg.mm import load_config
from ovseg.mm.ladder import LADDER, SCENES, below, in_order
from ovseg.mm.runner import prepare, run_test
from ovseg.mm.scenes_benchmark import SceneScores, score_on_scenes
from ovseg.results import Segmentation
from ovseg.text.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
NONE = ["--cfg-options", "model.templates=none"]


@pytest.fixture
def tool() -> ModuleType:
    return load_tool(ROOT / "tools" / "test.py")


def some_backgrounds(self: Inferencer, images: Any, classes: Any, **_: Any) -> Iterator[Answers]:
    """In the place of a method: quick, and sometimes right."""
    names = Vocabulary.parse(classes).names
    for image in images:
        labels = 40 + (image[..., 0] + len(self.refine)) % 16
        found = Segmentation(labels, names, np.ones(image.shape[:2], np.float32))
        yield Answers(image.shape[:2], names, segmentation=found)


@pytest.mark.usefixtures("tiny_clip")
def test_config_and_method_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inferencer, "answers", some_backgrounds)
    path = ROOT / "configs" / "sclip" / "sclip_bundled_scenes.py"
    options = {
        "model.templates": "none",
        "test_dataloader.num_workers": 0,
        "test_dataloader.persistent_workers": False,
        "test_dataloader.dataset.length": 3,
        "test_dataloader.dataset.seed": 5,
    }
    config = load_config(path, options)
    scores = score_on_scenes(config, seeds=[5], num_scenes=3)
    metrics = run_test(prepare(config, work_dir=tmp_path))
    assert scores.mean_iou == (pytest.approx(metrics["mIoU"] / 100, abs=6e-5), 0.0)
    assert scores.pixel_accuracy[0] == pytest.approx(metrics["aAcc"] / 100, abs=6e-5)
    assert scores.pixel_accuracy[0] > 0


@pytest.mark.usefixtures("tiny_clip")
def test_methods_print_and_write_a_table(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "results.md"
    page.write_text(f"# Mine\n\nkept before\n{SCENES.begin}\nold\n{SCENES.end}\nkept after\n")
    words = [
        "clip",
        "maskclip",
        "--seeds",
        "0",
        "1",
        "--num-scenes",
        "2",
        "--per-class",
        "--device",
        "cpu",
        *NONE,
    ]
    assert tool.main([*words, "--write", str(page)]) == 0
    printed = capsys.readouterr().out
    cell = r"\d+\.\d ± \d+\.\d \| "
    figures = re.findall(rf"^\| (\w+) \| {cell}{cell}{cell}\d+ \|$", printed, re.M)
    assert figures == ["clip", "maskclip"]
    assert re.search(r"^\| grass \| ", printed, re.M)
    text = page.read_text()
    assert text.startswith("# Mine\n\nkept before\n")
    assert text.endswith("kept after\n")
    assert "old" not in text
    assert "python tools/test.py clip maskclip --seeds 0 1" in text
    assert re.search(r"Commit (`[0-9a-f]{12}`|unknown)", text)
    assert tool.main([*words, "--write", str(page)]) == 0
    assert page.read_text().count(SCENES.begin) == 1


@pytest.mark.usefixtures("tiny_clip")
def test_ladder(
    tool: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Inferencer, "answers", some_backgrounds)
    page, picture = tmp_path / "results.md", tmp_path / "sub" / "ladder.jpg"
    page.write_text(f"{LADDER.begin}\n{LADDER.end}\n")
    words = ["sclip", "maskclip", "--ladder", "--refine", "none", "pamr", "--seeds", "0", "1", *NONE]
    words += ["--num-scenes", "2", "--device", "cpu", "--keep", str(tmp_path / "kept")]
    assert tool.main([*words, "--write", str(page), "--picture", str(picture)]) == 0
    printed = capsys.readouterr()
    cell, gain = r"\d+\.\d ± \d+\.\d", r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]"
    rows = re.findall(rf"^\| ([^|]+) \| {cell} \| ({gain})? ?\| {cell} \| \d+ \|$", printed.out, re.M)
    assert [row[0] for row in rows] == ["maskclip", "maskclip + PAMR", "sclip", "sclip + PAMR"]
    assert [bool(row[1]) for row in rows] == [False, True, True, True]
    assert "10,000 paired resamples" in page.read_text()
    with Image.open(picture) as drawn:
        assert drawn.width > drawn.height
    assert picture.stat().st_size < 300_000
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert len(kept) == 4
    assert tool.main([*words, "--picture", str(picture)]) == 0  # read back, not measured again
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert capsys.readouterr().out.startswith(printed.out.partition("\n\n")[0])
    assert tool.main([*words, "--num-scenes", "1"]) == 0  # other settings are other figures
    assert all(path.stat().st_mtime_ns > before for path, before in kept.items())


def test_order_of_the_ladder() -> None:
    assert in_order(["mine", "trident", "clip", "rgb-control"]) == ["clip", "rgb-control", "trident", "mine"]
    rows = [
        SceneScores(method, refine, (), (), (), 0.0, {}, "")
        for method in ("clip", "sclip")
        for refine in ("none", "pamr", "sam")
    ]
    rungs = [below(rows, index) for index in range(6)]
    assert [each and each.name for each in rungs] == [None, *["clip"] * 3, *["sclip"] * 2]


@pytest.mark.usefixtures("tiny_clip")
def test_config_through_the_runner(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LAYOUTS["voc21"].write(tmp_path, 21)
    (path,) = (each for each in CONFIGS if each.stem == "clip_vitb16_voc21")
    data = f"test_dataloader.dataset.data_root={tmp_path}/VOCdevkit/VOC2012"
    quick = ["test_dataloader.num_workers=0", "test_dataloader.persistent_workers=False", data]
    words = [str(path), "--work-dir", str(tmp_path / "work"), "--limit", "2", *NONE, *quick]
    assert tool.main(words) == 0
    assert re.search(r"clip_vitb16_voc21: .*mIoU \d+\.\d\d", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sclap"], "unknown method 'sclap'. Did you mean 'sclip'?"),
        (["configs/none.py"], "no such config: configs/none.py"),
        (["sclip", "configs/none.py"], "one config and at most one checkpoint"),
        (["sclip", "--cfg-options", "model"], "--cfg-options takes KEY=VALUE, got 'model'"),
        (["sclip", "--split", "tests", *NONE], "unknown split 'tests'. Did you mean 'test'?"),
        (["sclip", "--num-scenes", "0", *NONE], "at least one scene"),
        (["sclip", "--refine", "pamir", *NONE], "unknown refinement 'pamir'. Did you mean 'pamr'?"),
        ([], "ask for all with --ladder"),
        (["--heads", "sclip"], "--heads takes no methods"),
        (["--heads", "--num-scenes", "1"], "two scenes and a good image at least"),
    ],
)
def test_messages(
    tool: ModuleType, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main(words) == 2
    assert message in capsys.readouterr().err


def test_page_without_a_place_is_refused_before_the_work(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "results.md"
    page.write_text("# Mine\n")
    assert tool.main(["sclip", "--write", str(page)]) == 2
    assert SCENES.begin in capsys.readouterr().err
    assert page.read_text() == "# Mine\n"


def test_missing_dataset_is_a_usage_error(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(ROOT / "configs/sclip/sclip_vitb16_ade20k.py"), "--cfg-options"]
    assert tool.main([*words, f"test_dataloader.dataset.data_root={tmp_path}"]) == 2
    assert "docs/datasets.md" in capsys.readouterr().err
