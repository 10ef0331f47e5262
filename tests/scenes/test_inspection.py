"""Inspection scenes: repeatable, good where they say so, damaged on the object only, and as a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import load_tool

from ovseg.errors import ConfigError
from ovseg.scenes.inspection import KINDS, InspectionSet

ROOT = Path(__file__).parents[2]
HW = (96, 128)


def test_good_and_test_scenes() -> None:
    good = [InspectionSet("clock", "good", size_hw=HW)[index] for index in range(6)]
    test = [InspectionSet("clock", "test", size_hw=HW)[index] for index in range(12)]
    assert not any(scene.defects.any() or scene.instance_defects != (None,) for scene in good)
    damaged = [scene for scene in test if scene.instance_defects != (None,)]
    assert 3 <= len(damaged) <= 9
    for scene in test:
        assert scene.names == ("clock",)
        assert scene.defects.any() == (scene.instance_defects != (None,))
        assert scene.image.shape == (*HW, 3)
    assert len({scene.image.tobytes() for scene in good + test}) == 18


def test_same_arguments_same_scenes() -> None:
    one, again = (InspectionSet("pizza", "test", 3, size_hw=HW)[2] for _ in range(2))
    np.testing.assert_array_equal(one.image, again.image)
    np.testing.assert_array_equal(one.defects, again.defects)
    others = [("pizza", "val", 3), ("pizza", "good", 3), ("pizza", "test", 4), ("donut", "test", 3)]
    for kind, part, seed in others:
        other = InspectionSet(kind, part, seed, size_hw=HW)[2]
        assert (other.image != one.image).any()


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match=r"unknown kind of thing 'piza'.*Did you mean 'pizza'"):
        InspectionSet("piza")
    assert all(InspectionSet(kind).kind == kind for kind in KINDS)


def test_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load_tool(ROOT / "tools" / "make_inspection_scenes.py")
    words = [
        str(tmp_path / "out"),
        "--kinds",
        "cell phone",
        "--good",
        "2",
        "--test",
        "4",
        "--size",
        "64",
        "80",
    ]
    assert tool.main(words) == 0
    folder = tmp_path / "out" / "cell_phone"
    assert len(list((folder / "train" / "good").glob("*.png"))) == 2
    images = sorted((folder / "test").rglob("*.png"))
    assert len(images) == 4
    for image in images:
        mask = folder / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
        assert mask.is_file() == (image.parent.name != "good")
        with Image.open(image) as stored:
            assert stored.size == (80, 64)
    assert tool.main(words) == 2  # never over what is there
    assert "not empty" in capsys.readouterr().err
