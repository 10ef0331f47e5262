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
from support import load_tool

from ovseg.inferencer import Inferencer
from ovseg.mm import load_config
from ovseg.mm.runner import prepare, run_test
from ovseg.mm.scenes_benchmark import score_on_scenes
from ovseg.results import Segmentation
from ovseg.text.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
NONE = ["--cfg-options", "model.templates=none"]


@pytest.fixture
def tool() -> ModuleType:
    return load_tool(ROOT / "tools" / "test.py")


@pytest.mark.usefixtures("tiny_clip")
def test_config_and_method_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def some_backgrounds(self: Inferencer, images: Any, classes: Any, **_: Any) -> Iterator[Segmentation]:
        names = Vocabulary.parse(classes).names
        for image in images:
            yield Segmentation(40 + image[..., 0] % 16, names, np.ones(image.shape[:2], np.float32))

    monkeypatch.setattr(Inferencer, "__call__", some_backgrounds)
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
    page.write_text(f"# Mine\n\nkept before\n{tool.BEGIN}\nold\n{tool.END}\nkept after\n")
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
    figures = re.findall(r"^\| (\w+) \| \d+\.\d ± \d+\.\d \| \d+\.\d ± \d+\.\d \| \d+ \|$", printed, re.M)
    assert figures == ["clip", "maskclip"]
    assert re.search(r"^\| grass \| ", printed, re.M)
    text = page.read_text()
    assert text.startswith("# Mine\n\nkept before\n")
    assert text.endswith("kept after\n")
    assert "old" not in text
    assert "python tools/test.py clip maskclip --seeds 0 1" in text
    assert re.search(r"Commit (`[0-9a-f]{12}`|unknown)", text)
    assert tool.main([*words, "--write", str(page)]) == 0
    assert page.read_text().count(tool.BEGIN) == 1


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
    assert tool.BEGIN in capsys.readouterr().err
    assert page.read_text() == "# Mine\n"


def test_missing_dataset_is_a_usage_error(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(ROOT / "configs/sclip/sclip_vitb16_ade20k.py"), "--cfg-options"]
    assert tool.main([*words, f"test_dataloader.dataset.data_root={tmp_path}"]) == 2
    assert "docs/datasets.md" in capsys.readouterr().err
