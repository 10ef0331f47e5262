"""What `tools/prepare.py` says of whole and of damaged data sets, three images each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.io
from mm.anomaly_layouts import write_mvtec, write_visa, write_visa_converted
from mm.detection_layouts import write_coco
from mm.layouts import LAYOUTS
from PIL import Image
from support import load_tool

from ovseg.prepare.benchmarks import BENCHMARKS, benchmark
from ovseg.text.vocabulary import Vocabulary

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool(REPO / "tools" / "prepare.py")


CLASSES = {
    "voc21": 21,
    "voc20": 20,
    "context60": 60,
    "context59": 59,
    "coco_object": 81,
    "coco_stuff164k": 171,
    "cityscapes": 19,
    "ade20k": 150,
}


def write_labels(name: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        layout = LAYOUTS[name]
        layout.write(root.parent, CLASSES[name])
        (root.parent / layout.root.split("/")[0]).rename(root.parent / "moved")
        (root.parent / "moved" / Path(*layout.root.split("/")[1:])).rename(root)

    return write


def write_fsc147(root: Path) -> None:
    names = [f"{number}.jpg" for number in (2, 3, 5)]
    (root / "images_384_VarV2").mkdir(parents=True)
    for name in names:
        Image.new("RGB", (40, 30)).save(root / "images_384_VarV2" / name)
    dots = {name: {"points": [[3.0, 4.0]], "box_examples_coordinates": []} for name in names}
    (root / "annotation_FSC147_384.json").write_text(json.dumps(dots))
    (root / "Train_Test_Val_FSC_147.json").write_text(json.dumps({"test": names}))
    (root / "ImageClasses_FSC147.txt").write_text("".join(f"{name}\tpeas\n" for name in names))


def write_crowd(root: Path) -> None:
    data = root / "part_A_final" / "test_data"
    (data / "images").mkdir(parents=True)
    (data / "ground_truth").mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (40, 30)).save(data / "images" / f"IMG_{number}.jpg")
        info = np.empty((1, 1), object)
        info[0, 0] = {"location": np.full((number, 2), 5.0), "number": float(number)}
        scipy.io.savemat(data / "ground_truth" / f"GT_IMG_{number}.mat", {"image_info": info})


def write_instances(name: str) -> Callable[[Path], None]:
    file = "annotations/lvis_v1_val.json" if name == "lvis_ov" else "annotations/instances_val2017.json"
    lvis = name == "lvis_ov"
    folders = ("train2017", "val2017", "val2017") if lvis else ("val2017",) * 3
    vocabulary = {"coco_instance": "coco", "coco_ov": "ov_coco", "lvis_ov": "lvis"}[name]

    def write(root: Path) -> None:
        write_coco(root, Vocabulary.parse(vocabulary).names, file=file, folders=folders, lvis=lvis)

    return write


def write_unlabelled(root: Path) -> None:
    (root / "train" / "n01440764").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(root / "train" / "n01440764" / "n01440764_10026.JPEG")


def write_crowd_b(root: Path) -> None:
    write_crowd(root)
    (root / "part_A_final").rename(root / "part_B")
    data = root / "part_B" / "test_data"
    (data / "ground_truth").rename(data / "ground-truth")


WRITERS: dict[str, Callable[[Path], None]] = {
    **{name: write_labels(name) for name in LAYOUTS},
    **{name: write_instances(name) for name in ("coco_instance", "coco_ov", "lvis_ov")},
    "mvtec_ad": write_mvtec,
    "visa": write_visa,
    "fsc147": write_fsc147,
    "shanghaitech_a": write_crowd,
    "shanghaitech_b": write_crowd_b,
    "imagenet_unlabelled": write_unlabelled,
}
#: A file that is taken away, and what must be said then.
LOST = {
    "voc21": (
        "JPEGImages/b.jpg",
        "images that ImageSets/Segmentation/val.txt names are not in JPEGImages (1): b",
    ),
    "voc20": ("ImageSets/Segmentation/val.txt", "ImageSets/Segmentation/val.txt is missing"),
    "context60": (
        "SegmentationClassContext/c.png",
        "by tools/dataset_converters/pascal_context.py) (1): c",
    ),
    "context59": ("JPEGImages/a.jpg", "names are not in JPEGImages (1): a"),
    "coco_object": ("annotations/val2017/a_instanceTrainIds.png", "coco_object.py) (1): a"),
    "coco_stuff164k": ("images/val2017/b.jpg", "label images in annotations/val2017 without an image (1): b"),
    "cityscapes": (
        "gtFine/val/lindau/lindau_000001_000019_gtFine_labelTrainIds.png",
        "cityscapes.py) (1): lindau/lindau_000001_000019",
    ),
    "ade20k": ("annotations/validation/c.png", "images without *.png in annotations/validation (1): c"),
    "coco_instance": ("val2017/000000000017.jpg", "names are missing (1): val2017/000000000017.jpg"),
    "coco_ov": ("annotations/instances_val2017.json", "annotations/instances_val2017.json is missing"),
    "lvis_ov": ("train2017/000000000007.jpg", "names are missing (1): train2017/000000000007.jpg"),
    "mvtec_ad": ("metal_nut/ground_truth/scratch/000_mask.png", "metal_nut/test/scratch/000.png"),
    "visa": ("candle/Data/Masks/Anomaly/000.png", "masks that split_csv/1cls.csv names are missing (1)"),
    "fsc147": ("images_384_VarV2/3.jpg", "Train_Test_Val_FSC_147.json names are missing (1): 3.jpg"),
    "shanghaitech_a": (
        "part_A_final/test_data/ground_truth/GT_IMG_2.mat",
        "images have no GT_NAME.mat (1): IMG_2",
    ),
    "shanghaitech_b": ("part_B/test_data/images/IMG_3.jpg", "GT_NAME.mat have no image (1): IMG_3"),
    "imagenet_unlabelled": ("train/n01440764/n01440764_10026.JPEG", "no image in train/"),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_whole_and_damaged(
    name: str, tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    WRITERS[name](root if name in LAYOUTS else (root.mkdir() or root))
    assert tool.main(["check", name, str(root), "--subset"]) == 0
    said = capsys.readouterr().out
    assert "all is there" in said
    # the published number is told; fewer are missing unless they are a subset
    expected = list(benchmark(name).images.values())[-1]
    if expected is not None:
        assert f" of {expected:,} images" in said
        assert tool.main(["check", name, str(root)]) == 1
        assert f"of {expected:,} images are missing" in capsys.readouterr().out
    file, message = LOST[name]
    (root / file).unlink()
    assert tool.main(["check", name, str(root), "--subset"]) == 1
    said = capsys.readouterr().out
    assert message in said
    assert f"expected:\n{root}/" in said
    assert "docs/datasets.md" in said


def test_a_missing_or_empty_folder_shows_the_layout(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in BENCHMARKS:
        assert tool.main(["check", name, str(tmp_path / "nowhere"), "--split", "all"]) == 1
        said = capsys.readouterr().out
        assert f"there is no folder {tmp_path / 'nowhere'}" in said
        assert "expected:" in said
        assert tool.main(["check", name, str(tmp_path)]) == 1
        assert "missing or wrong" in capsys.readouterr().out


def test_labels_are_looked_at(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_labels("coco_object")(root)
    folder = root / "annotations" / "val2017"
    (path,) = folder.glob("a_*")
    with Image.open(path) as stored:
        good = np.array(stored)

    def fault(pixels: np.ndarray) -> str:
        Image.fromarray(pixels).save(path)
        (report,) = benchmark("coco_object").check(root, subset=True)
        (problem,) = report.problems
        return problem

    wrong = good.copy()
    wrong[0, 0] = 81
    assert fault(wrong).endswith("a_instanceTrainIds.png holds 81: expected 0 to 80, and 255")
    assert "one byte per pixel, it is uint8 (37, 53, 3)" in fault(np.stack([good] * 3, axis=-1))
    assert fault(good[1:]).endswith("is 36x53, its image 37x53 (HxW)")
    path.write_bytes(b"no picture")
    (report,) = benchmark("coco_object").check(root, subset=True)
    assert "cannot be read" in report.problems[0]
    (report,) = benchmark("coco_object").check(root, subset=True, sample=0)
    assert not report.problems


def test_lists_with_names_twice(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_labels("voc21")(root)
    (root / "ImageSets/Segmentation/val.txt").write_text("a\nb\na\nd\n")
    (report,) = benchmark("voc").check(root, subset=True)
    assert report.problems[0] == "names twice in ImageSets/Segmentation/val.txt (1): a"
    assert "names are not in JPEGImages (1): d" in report.problems[1]
    (root / "ImageSets/Segmentation/val.txt").write_bytes(b"\xff\xfe")
    (report,) = benchmark("voc").check(root, subset=True)
    assert report.problems[0].startswith("cannot be read: 'utf-8'")


def test_annotation_files_are_looked_at(tmp_path: Path) -> None:
    names = Vocabulary.parse("coco").names
    path = tmp_path / "annotations" / "instances_val2017.json"
    told = write_coco(tmp_path, names, file="annotations/instances_val2017.json", folders=("val2017",) * 3)
    said = {each["name"]: each for each in told["categories"]}
    said["toaster"]["name"] = "roaster"
    told["images"][0]["height"] += 1
    told["annotations"][0]["image_id"] = 12345
    path.write_text(json.dumps(told))
    (report,) = benchmark("coco").check(tmp_path, subset=True)
    assert report.problems[0].endswith("instances_val2017.json (1): toaster")
    assert report.problems[1].startswith("1 annotations in")
    assert "is 61x83, the annotations say 62x83 (HxW)" in report.problems[2]
    path.write_text('{"images": []}')
    (report,) = benchmark("coco").check(tmp_path, subset=True)
    assert "expected 'annotations', a list of objects" in report.problems[0]


def test_only_images_with_objects_count_in_open_vocabulary_coco(tmp_path: Path) -> None:
    write_instances("coco_ov")(tmp_path)
    (all_images,) = benchmark("coco_instance").check(tmp_path, subset=True)
    (shown,) = benchmark("coco_ov").check(tmp_path, subset=True)
    assert (all_images.counts[0].found, shown.counts[0].found) == (4, 3)


def test_converted_visa_is_whole(tmp_path: Path) -> None:
    write_visa_converted(tmp_path)
    for report in benchmark("visa").check(tmp_path, "all", subset=True):
        assert not report.problems
    (report,) = benchmark("visa").check(tmp_path)
    assert any("categories have no images for test (11): capsules" in each for each in report.problems)


def test_wrong_usage(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["check", "ade20", "x"]) == 2
    assert "Did you mean 'ade20k'?" in capsys.readouterr().err
    assert tool.main(["check", "scenes"]) == 2
    assert "drawn on the fly" in capsys.readouterr().err
    assert tool.main(["check", "fsc147", "x", "--split", "vall"]) == 2
    assert "unknown split 'vall'" in capsys.readouterr().err
    for words in (["check"], ["check", "voc21", "x", "--sample", "-1"], []):
        with pytest.raises(SystemExit) as stopped:
            tool.main(words)
        assert stopped.value.code == 2


def test_list_names_every_config(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["list"]) == 0
    said = capsys.readouterr().out
    listed = {line.split()[0] for line in said.splitlines()[1:]}
    bases = {path.stem.removesuffix("_train") for path in (REPO / "configs/_base_/datasets").glob("*.py")}
    drawn = {name for name in bases if name.startswith("scenes")}
    shared = {"segmentation", "detection", "anomaly", "counting", "coco_regions", "shanghaitech"}
    assert listed == bases - drawn - shared
    assert "4,836" in said
    assert "tools/dataset_converters/pascal_context.py" in said


def test_help_has_examples(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    assert "python tools/prepare.py check voc21" in capsys.readouterr().out
