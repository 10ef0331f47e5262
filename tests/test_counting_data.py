from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from ovseg.counting_data import read_fsc147, read_shanghaitech
from ovseg.errors import ConfigError

DOTS = {1: [[3.5, 4.0], [20.0, 11.0]], 2: [[7.0, 7.0]], 10: []}


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 24), (90, 120, 60)).save(path)


@pytest.fixture
def fsc147(tmp_path: Path) -> Path:
    for number in DOTS:
        write_image(tmp_path / f"images_384_VarV2/{number}.jpg")
    corners = [[[2, 3], [2, 9], [8, 9], [8, 3]]]
    annotations = {
        f"{number}.jpg": {"H": 24, "W": 32, "points": dots, "box_examples_coordinates": corners}
        for number, dots in DOTS.items()
    }
    (tmp_path / "annotation_FSC147_384.json").write_text(json.dumps(annotations))
    splits = {"train": ["10.jpg"], "val": [], "test": ["2.jpg", "1.jpg"]}
    (tmp_path / "Train_Test_Val_FSC_147.json").write_text(json.dumps(splits))
    names = "1.jpg\tsea shells\n2.jpg\tgreen peas\n10.jpg\tsea shells\n"
    (tmp_path / "ImageClasses_FSC147.txt").write_text(names)
    return tmp_path


def write_dots(path: Path, dots: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = np.empty((1, 1), object)
    info[0, 0] = {"location": np.array(dots, float).reshape(-1, 2), "number": float(len(dots))}
    scipy.io.savemat(path, {"image_info": info})


@pytest.fixture(params=["part_A/ground-truth", "part_A_final/ground_truth"])
def shanghaitech(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    part, truths = request.param.split("/")
    for number, dots in DOTS.items():
        write_image(tmp_path / f"{part}/test_data/images/IMG_{number}.jpg")
        write_dots(tmp_path / f"{part}/test_data/{truths}/GT_IMG_{number}.mat", dots)
    return tmp_path


def test_fsc147(fsc147: Path) -> None:
    first, second = read_fsc147(fsc147)
    assert (first.path.name, first.name, first.count) == ("2.jpg", "green peas", 1)
    assert second.points_xy.tolist() == DOTS[1]
    assert second.exemplars_xyxy.tolist() == [[2, 3, 8, 9]]
    (empty,) = read_fsc147(fsc147, "train")
    assert empty.points_xy.shape == (0, 2)
    assert read_fsc147(fsc147, "val") == []


def test_fsc147_says_what_is_missing(fsc147: Path) -> None:
    with pytest.raises(ConfigError, match="Valid: test, train, val"):
        read_fsc147(fsc147, "tset")
    (fsc147 / "images_384_VarV2/2.jpg").unlink()
    with pytest.raises(ConfigError, match=r"no image .*2\.jpg"):
        read_fsc147(fsc147)
    (fsc147 / "ImageClasses_FSC147.txt").write_text("2.jpg sea shells\n")
    with pytest.raises(ConfigError, match="file<tab>class"):
        read_fsc147(fsc147)
    (fsc147 / "annotation_FSC147_384.json").unlink()
    with pytest.raises(ConfigError, match=r"no annotation_FSC147_384.json: FSC-147 needs"):
        read_fsc147(fsc147)


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ("{", "no valid JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "nothing about '2.jpg'"),
        ('{"2.jpg": {}}', 'needs "points"'),
        ('{"2.jpg": {"points": [[1, 2, 3]]}}', "expected finite numbers"),
    ],
)
def test_broken_annotations(fsc147: Path, annotations: str, message: str) -> None:
    (fsc147 / "annotation_FSC147_384.json").write_text(annotations)
    with pytest.raises(ConfigError, match=message):
        read_fsc147(fsc147)


def test_shanghaitech(shanghaitech: Path) -> None:
    found = read_shanghaitech(shanghaitech, "A", "test")
    assert [each.path.name for each in found] == ["IMG_1.jpg", "IMG_2.jpg", "IMG_10.jpg"]
    assert [each.points_xy.tolist() for each in found] == [DOTS[1], DOTS[2], DOTS[10]]
    assert [each.count for each in found] == [2, 1, 0]
    assert {each.name for each in found} == {"person"}


def test_shanghaitech_says_what_is_missing(shanghaitech: Path) -> None:
    with pytest.raises(ConfigError, match="no folder part_B or part_B_final: ShanghaiTech needs"):
        read_shanghaitech(shanghaitech, "B")
    with pytest.raises(ConfigError, match="no folder images"):
        read_shanghaitech(shanghaitech, "A", "train")
    with pytest.raises(ConfigError, match="Valid: A, B"):
        read_shanghaitech(shanghaitech, "a")
    with pytest.raises(ConfigError, match="Valid: test, train"):
        read_shanghaitech(shanghaitech, "A", "val")
    truth = next(shanghaitech.rglob("GT_IMG_1.mat"))
    scipy.io.savemat(truth, {"dots": np.zeros((2, 2))})
    with pytest.raises(ConfigError, match=r"image_info.*\['dots'\]"):
        read_shanghaitech(shanghaitech)
    truth.write_bytes(b"nothing of MATLAB's" * 20)
    with pytest.raises(ConfigError, match="cannot be read as a MATLAB file"):
        read_shanghaitech(shanghaitech)
    truth.unlink()
    with pytest.raises(ConfigError, match="no annotation"):
        read_shanghaitech(shanghaitech)
