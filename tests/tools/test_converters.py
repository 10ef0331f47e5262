"""COCO-Object's labels from COCO-Stuff's pixel maps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from support import load_tool

from ovseg.text.vocabulary import Vocabulary

TOOL = Path(__file__).parents[2] / "tools" / "dataset_converters" / "coco_object.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool(TOOL)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two maps with person, giraffe (past the first gaps), toothbrush (the last), stuff and unlabelled."""
    root = tmp_path / "coco_stuff164k"
    (root / "annotations" / "val2017").mkdir(parents=True)
    (root / "images" / "val2017").mkdir(parents=True)
    (root / "images" / "val2017" / "000000000139.jpg").write_bytes(b"jpeg")
    for name, numbers in {
        "000000000139": [[0, 0, 24], [89, 91, 255]],
        "000000000285": [[12, 12, 181], [0, 26, 91]],
    }.items():
        Image.fromarray(np.array(numbers, np.uint8)).save(root / "annotations" / "val2017" / f"{name}.png")
    return root


def labels(path: Path) -> list[list[int]]:
    with Image.open(path) as image:
        return np.array(image).tolist()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_object(source: Path, tmp_path: Path, workers: str) -> None:
    out = tmp_path / "coco_object"
    words = [sys.executable, str(TOOL), str(source), "-o", str(out), "--workers", workers]
    subprocess.run(words, check=True, capture_output=True)
    first = labels(out / "annotations" / "val2017" / "000000000139_instanceTrainIds.png")
    names = Vocabulary.parse("coco_object").names
    assert [[names[label] for label in row] for row in first] == [
        ["person", "person", "giraffe"],
        ["toothbrush", "background", "background"],
    ]
    # number 12 is COCO's category 13, stop sign: the first after a gap
    second = labels(out / "annotations" / "val2017" / "000000000285_instanceTrainIds.png")
    assert second == [[12, 12, 0], [1, 25, 0]]
    assert names[12] == "stop sign"
    assert (out / "images" / "val2017" / "000000000139.jpg").read_bytes() == b"jpeg"
    assert sorted(p.name for p in (out / "annotations" / "val2017").iterdir()) == [
        "000000000139_instanceTrainIds.png",
        "000000000285_instanceTrainIds.png",
    ]


def test_tables_are_complete(tool: ModuleType) -> None:
    objects, stuff = tool.object_table(), tool.stuff_table()
    assert len(tool.THINGS) == 80
    assert sorted(set(objects.tolist())) == [-1, *range(81)]
    assert sorted(set(stuff.tolist())) == [-1, *range(171), 255]
    assert len(Vocabulary.parse("coco_object")) == 81
    assert len(Vocabulary.parse("coco_stuff")) == 171


def test_stuff(tool: ModuleType, source: Path) -> None:
    assert tool.main([str(source), "--stuff", "--workers", "1"]) == 0
    folder = source / "annotations" / "val2017"
    names = Vocabulary.parse("coco_stuff").names
    first = labels(folder / "000000000139_labelTrainIds.png")
    assert [names[label] for label in first[0]] == ["person", "person", "giraffe"]
    assert names[first[1][0]] == "toothbrush"
    assert names[first[1][1]] == "banner"
    assert first[1][2] == 255
    assert labels(folder / "000000000285_labelTrainIds.png")[0][2] == 170
    assert len(tool.pixel_maps(folder)) == 2


def test_second_run_only_adds(tool: ModuleType, source: Path) -> None:
    folder = source / "annotations" / "val2017"
    assert tool.main([str(source), "--workers", "1"]) == 0
    done = folder / "000000000139_instanceTrainIds.png"
    done.write_bytes(b"kept")
    (folder / "000000000285_instanceTrainIds.png").unlink()
    assert tool.main([str(source), "--workers", "1"]) == 0
    assert done.read_bytes() == b"kept"
    assert (folder / "000000000285_instanceTrainIds.png").exists()


def test_broken_files_are_reported_and_the_others_done(
    tool: ModuleType, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = source / "annotations" / "val2017"
    (folder / "broken.png").write_bytes(b"no picture")
    Image.fromarray(np.full((2, 3), 200, np.uint8)).save(folder / "foreign.png")
    assert tool.main([str(source), "--workers", "1"]) == 1
    message = capsys.readouterr().err
    assert "broken.png: cannot be read" in message
    assert "foreign.png: number 200 is none of COCO-Stuff's" in message
    assert (folder / "000000000139_instanceTrainIds.png").exists()


def test_wrong_folder_is_a_usage_error(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(tmp_path)]) == 2
    assert "stuffthingmaps_trainval2017.zip" in capsys.readouterr().err
