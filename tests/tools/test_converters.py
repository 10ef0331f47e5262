"""Every converter, on its data set's published form in miniature."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.io
from mm.anomaly_layouts import HW, damage, write_visa
from PIL import Image
from support import load_tool

from ovseg.prepare.benchmarks import benchmark
from ovseg.prepare.conversion import convert_all
from ovseg.prepare.label_tables import THINGS, cityscapes_table, object_table, stuff_table
from ovseg.rle import encode_mask
from ovseg.text.vocabulary import Vocabulary

FOLDER = Path(__file__).parents[2] / "tools" / "dataset_converters"
TOOL = FOLDER / "coco_object.py"


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


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_object(source: Path, tmp_path: Path, jobs: str) -> None:
    out = tmp_path / "coco_object"
    words = [sys.executable, str(TOOL), str(source), "-o", str(out), "--jobs", jobs]
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


def test_tables_are_complete() -> None:
    assert len(THINGS) == 80
    assert sorted(set(object_table().tolist())) == [-1, *range(81)]
    assert sorted(set(stuff_table().tolist())) == [-1, *range(171), 255]
    assert sorted(set(cityscapes_table().tolist())) == [-1, *range(19), 255]
    for vocabulary, size in {"coco_object": 81, "coco_stuff": 171, "cityscapes": 19}.items():
        assert len(Vocabulary.parse(vocabulary)) == size


def test_stuff(tool: ModuleType, source: Path) -> None:
    assert tool.main([str(source), "--stuff", "--jobs", "1"]) == 0
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
    assert tool.main([str(source), "--jobs", "1"]) == 0
    done = folder / "000000000139_instanceTrainIds.png"
    done.write_bytes(b"kept")
    (folder / "000000000285_instanceTrainIds.png").unlink()
    assert tool.main([str(source), "--jobs", "1"]) == 0
    assert done.read_bytes() == b"kept"
    assert (folder / "000000000285_instanceTrainIds.png").exists()


def test_broken_files_are_reported_and_the_others_done(
    tool: ModuleType, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = source / "annotations" / "val2017"
    (folder / "broken.png").write_bytes(b"no picture")
    Image.fromarray(np.full((2, 3), 200, np.uint8)).save(folder / "foreign.png")
    assert tool.main([str(source), "--jobs", "1"]) == 1
    message = capsys.readouterr().err
    assert "broken.png: cannot be read" in message
    assert "foreign.png: number 200 is none of COCO-Stuff's" in message
    assert (folder / "000000000139_instanceTrainIds.png").exists()


def test_wrong_folder_is_a_usage_error(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(tmp_path)]) == 2
    assert "stuffthingmaps_trainval2017.zip" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_help_has_examples_and_the_exit_status(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load_tool(path).main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert f"python tools/dataset_converters/{path.name} data/" in said or path.stem == "pascal_context"
    assert "Exit status: 0 done" in said
    assert "--jobs" in said


def test_jobs_must_be_positive(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load_tool(FOLDER / "cityscapes.py").main(["data", "--jobs", "0"])
    assert stopped.value.code == 2
    assert "at least 1, got 0" in capsys.readouterr().err


def fails_on_three(number: int) -> str | None:
    if number == 3:
        raise KeyError("three")
    return "two is odd" if number == 2 else None


def test_a_failure_leaves_the_others_alone() -> None:
    problems = convert_all(fails_on_three, [1, 2, 3, 4], jobs=1, name="numbers")
    assert problems == ["two is odd", "3: cannot be converted: KeyError: 'three'"]


# Cityscapes


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """Two cities; ids of road, person, bicycle, and of classes that are not evaluated."""
    for city, ids in {"frankfurt": [[7, 24], [33, 0]], "lindau": [[29, 8], [6, 31]]}.items():
        stem = f"{city}/{city}_000000_000294"
        for path, pixels in {
            f"leftImg8bit/val/{stem}_leftImg8bit.png": np.zeros((2, 2, 3), np.uint8),
            f"gtFine/val/{stem}_gtFine_labelIds.png": np.array(ids, np.uint8),
        }.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / path)
    return tmp_path


def test_cityscapes(cityscapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load_tool(FOLDER / "cityscapes.py")
    assert tool.main([str(cityscapes), "--jobs", "1"]) == 0
    made = cityscapes / "gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelTrainIds.png"
    names = Vocabulary.parse("cityscapes").names
    first = labels(made)
    assert [names[label].split(",")[0] for label in (first[0][0], first[0][1], first[1][0])] == [
        *("road", "person", "bicycle")
    ]
    assert first[1][1] == 255
    other = made.parents[1] / "lindau" / made.name.replace("frankfurt", "lindau")
    assert labels(other) == [[255, 1], [255, 16]]
    (report,) = benchmark("cityscapes").check(cityscapes, subset=True)
    assert not report.problems
    # again: what exists is kept, a bad file is named, the others are done
    made.write_bytes(b"kept")
    other.unlink()
    bad = other.with_name("bad_gtFine_labelIds.png")
    Image.fromarray(np.full((2, 2), 34, np.uint8)).save(bad)
    assert tool.main([str(cityscapes), "--jobs", "1"]) == 1
    assert "bad_gtFine_labelIds.png: number 34 is none of Cityscapes's" in capsys.readouterr().err
    assert made.read_bytes() == b"kept"
    assert other.exists()
    assert tool.main([str(cityscapes), "--splits", "train"]) == 2
    assert "gtFine_trainvaltest.zip" in capsys.readouterr().err


# Pascal Context

#: Numbers of the 459 classes, as PASCAL in Detail has them: aeroplane, sky, wood, and accordion (none of 59).
AEROPLANE, SKY, WOOD, ACCORDION = 2, 360, 458, 1


def context_truth() -> np.ndarray:
    """Sky, an aeroplane before it, wood, and nothing."""
    numbers = np.zeros((6, 9), np.int64)
    numbers[:4], numbers[1:3, 2:5], numbers[5, 4:] = SKY, AEROPLANE, WOOD
    return numbers


def named(path: Path) -> list[list[str]]:
    names = Vocabulary.parse("context60").names
    return [[names[label] for label in row] for row in labels(path)]


def write_context(root: Path, category: int = WOOD) -> Path:
    """trainval_merged.json of one image for training and one for validation; VOC 2010's own lists."""
    numbers, told = context_truth(), {"images": [], "annos_segmentation": [], "categories": []}
    whole = np.zeros(numbers.shape, bool)
    whole[:4] = True  # sky is painted below the aeroplane
    masks = [(SKY, whole), (AEROPLANE, numbers == AEROPLANE), (category, numbers == WOOD)]
    for index, (stem, phase) in enumerate({"2008_000002": "val", "2008_000008": "train"}.items()):
        image = {"image_id": 2008000002 + index, "file_name": f"{stem}.jpg", "phase": phase}
        told["images"].append(image | {"height": numbers.shape[0], "width": numbers.shape[1]})
        for number, mask in masks:
            segment: dict[str, Any] = {"id": len(told["annos_segmentation"]), "category_id": number}
            segment |= {"image_id": image["image_id"], "segmentation": encode_mask(mask)}
            told["annos_segmentation"].append(segment)
        (root / "JPEGImages").mkdir(exist_ok=True)
        Image.new("RGB", (9, 6)).save(root / "JPEGImages" / f"{stem}.jpg")
        (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / "Main" / f"{phase}.txt").write_text(f"{stem}\n2008_000099\n")
    (root / "trainval_merged.json").write_text(json.dumps(told))
    return root / "trainval_merged.json"


def write_matrices(folder: Path) -> None:
    folder.mkdir()
    for stem in ("2008_000002", "2008_000008"):
        numbers = context_truth().astype(np.uint16)
        numbers[4] = ACCORDION
        scipy.io.savemat(folder / f"{stem}.mat", {"LabelMap": numbers})


@pytest.mark.parametrize("form", ["json", "mat"])
def test_pascal_context(form: str, tmp_path: Path) -> None:
    tool = load_tool(FOLDER / "pascal_context.py")
    source = write_context(tmp_path)
    if form == "mat":
        source.unlink()
        write_matrices(tmp_path / "trainval")
        source = tmp_path / "trainval"
    assert tool.main([str(source), "-o", str(tmp_path), "--jobs", "1"]) == 0
    assert named(tmp_path / "SegmentationClassContext" / "2008_000002.png") == [
        ["sky"] * 9,
        *([["sky"] * 2 + ["aeroplane"] * 3 + ["sky"] * 4] * 2),
        ["sky"] * 9,
        ["background"] * 9,
        ["background"] * 4 + ["wood"] * 5,
    ]
    lists = tmp_path / "ImageSets" / "SegmentationContext"
    assert (lists / "val.txt").read_text() == "2008_000002\n"
    assert (lists / "train.txt").read_text() == "2008_000008\n"
    reports = benchmark("context59").check(tmp_path, "all", subset=True)
    assert [report.problems for report in reports] == [[], []]
    made = tmp_path / "SegmentationClassContext" / "2008_000002.png"
    made.write_bytes(b"kept")
    assert tool.main([str(source), "-o", str(tmp_path), "--jobs", "1"]) == 0
    assert made.read_bytes() == b"kept"


def test_bad_annotations_of_pascal_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load_tool(FOLDER / "pascal_context.py")
    source = write_context(tmp_path, category=ACCORDION)
    told = json.loads(source.read_text())
    told["annos_segmentation"] = [
        each for each in told["annos_segmentation"] if each["id"] != 5
    ]  # the second image is good now
    told["annos_segmentation"][3]["segmentation"]["size"] = [6, 9]
    source.write_text(json.dumps(told))
    assert tool.main([str(source), "--jobs", "1"]) == 1
    assert "2008_000002: category 1 is none of the 59 classes" in capsys.readouterr().err
    assert (tmp_path / "SegmentationClassContext" / "2008_000008.png").exists()
    source.write_text('{"images": [{"image_id": 1}]}')
    assert tool.main([str(source)]) == 2
    assert "annos_segmentation" in capsys.readouterr().err
    write_matrices(tmp_path / "trainval")
    (tmp_path / "trainval" / "2008_000002.mat").write_bytes(b"no matrix")
    (tmp_path / "SegmentationClassContext" / "2008_000008.png").unlink()
    arguments = [str(tmp_path / "trainval"), "-o", str(tmp_path), "--jobs", "1"]
    assert tool.main(arguments) == 1
    assert "2008_000002.mat: cannot be read as a MATLAB file" in capsys.readouterr().err
    assert (tmp_path / "SegmentationClassContext" / "2008_000008.png").exists()
    (tmp_path / "ImageSets" / "Main" / "val.txt").unlink()
    assert tool.main(arguments) == 2
    assert "VOCtrainval_03-May-2010.tar" in capsys.readouterr().err


# VisA


def test_visa(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load_tool(FOLDER / "visa.py")
    source, out = tmp_path / "visa", tmp_path / "visa_1cls"
    source.mkdir()
    write_visa(source)
    assert tool.main([str(source), "-o", str(out), "--jobs", "1"]) == 0
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        *("candle/ground_truth/bad/000.png", "candle/test/bad/000.JPG"),
        *("candle/test/good/0003.JPG", "candle/test/good/0004.JPG"),
        *(f"candle/train/good/000{index}.JPG" for index in range(3)),
    ]
    mask = np.array(labels(out / "candle/ground_truth/bad/000.png"))
    assert mask.shape == HW
    assert (mask == np.where(damage(), 255, 0)).all()
    reports = benchmark("visa").check(out, "all", subset=True)
    assert [report.problems for report in reports] == [[], []]
    # again, after a file was lost at the source and one at the target
    (source / "candle/Data/Images/Normal/0003.JPG").unlink()
    for name in ("0003", "0004"):
        (out / f"candle/test/good/{name}.JPG").unlink()
    assert tool.main([str(source), "-o", str(out), "--jobs", "1"]) == 1
    assert "0003.JPG: named by the split file, and not there" in capsys.readouterr().err
    assert (out / "candle/test/good/0004.JPG").exists()
    assert tool.main([str(tmp_path), "-o", str(out)]) == 2
    assert "1cls.csv cannot be read" in capsys.readouterr().err


# Open-vocabulary COCO


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A base class, a novel one, one of neither; the last image shows only that."""
    categories = [
        {"id": 1 + index, "name": name} for index, name in enumerate(Vocabulary.parse("coco").names)
    ]
    number = {each["name"]: each["id"] for each in categories}
    shown = [("person", "airplane"), ("person", "traffic light"), ("airplane",), ("traffic light",)]
    objects = [
        {"id": 10 * image + place, "image_id": image, "category_id": number[name], "bbox": [0, 0, 2, 2]}
        for image, names in enumerate(shown)
        for place, name in enumerate(names)
    ]
    images = [{"id": image, "file_name": f"{image}.jpg", "height": 4, "width": 5} for image in range(4)]
    told = {"info": {"year": 2017}, "categories": categories, "images": images, "annotations": objects}
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(told))
    return tmp_path


def test_ov_coco(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = load_tool(FOLDER / "ov_coco.py")
    assert tool.main([str(coco), "--jobs", "1"]) == 0
    train = json.loads((coco / "zero-shot" / "instances_train2017_seen_2.json").read_text())
    names = {each["id"]: (each["name"], each["split"]) for each in train["categories"]}
    assert [each["id"] for each in train["images"]] == [0, 1]
    assert [names[each["category_id"]] for each in train["annotations"]] == [("person", "seen")] * 2
    assert len(names) == 48
    val = json.loads((coco / "zero-shot" / "instances_val2017_all_2.json").read_text())
    assert [each["id"] for each in val["images"]] == [0, 1, 2]
    assert val["info"] == {"year": 2017}
    assert sum(each["split"] == "unseen" for each in val["categories"]) == 17
    assert len(val["categories"]) == 65
    # again: what exists is kept; a damaged file is named, the other is done
    made = coco / "zero-shot" / "instances_val2017_all_2.json"
    made.write_text("kept")
    (coco / "annotations" / "instances_train2017.json").write_text("{}")
    wishes = ["--files", "train2017:unseen", "val2017:all", "val2017:unseen", "--jobs", "1"]
    assert tool.main([str(coco), *wishes]) == 1
    assert "instances_train2017.json: expected 'images'" in capsys.readouterr().err
    assert made.read_text() == "kept"
    novel = json.loads((coco / "zero-shot" / "instances_val2017_unseen_2.json").read_text())
    assert [each["id"] for each in novel["images"]] == [0, 2]
    assert tool.main([str(coco), "--files", "val2017:novel"]) == 2
    assert tool.main([str(coco), "--files", "test2017:all"]) == 2
    assert "annotations_trainval2017.zip" in capsys.readouterr().err
