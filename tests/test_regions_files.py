"""Region maps from masks, from SAM and from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ovseg.errors import ConfigError, ImageError, ShapeError
from ovseg.regions import (
    RegionFolder,
    check_regions,
    paint_regions,
    read_regions,
    regions_of,
    resize_regions,
    sam_regions,
)
from ovseg.structures import Pictures

IDS = np.arange(12, dtype=np.int32).reshape(3, 4) * 23


def mask(rows: slice, columns: slice) -> dict:
    covered = np.zeros((5, 7), bool)
    covered[rows, columns] = True
    return {"segmentation": covered, "area": int(covered.sum())}


class FakeSam:
    def __init__(self) -> None:
        self.options: dict = {}

    def automatic_masks(self, image: np.ndarray, **options: object) -> list[dict]:
        self.options = options
        return [mask(slice(0, 3), slice(0, 4)), mask(slice(1, 2), slice(3, 7))]


def test_larger_masks_cover_smaller_ones() -> None:
    painted = paint_regions([mask(slice(0, 3), slice(0, 4)), mask(slice(1, 2), slice(3, 7))], (5, 7))
    assert painted[1].tolist() == [2, 2, 2, 2, 1, 1, 1]
    assert painted[3:].max() == 0
    assert paint_regions([], (5, 7)).tolist() == np.zeros((5, 7)).tolist()
    with pytest.raises(ShapeError, match="5x7"):
        paint_regions([mask(slice(0, 1), slice(0, 1))], (7, 5))


def test_sam_is_asked_only_where_no_regions_came() -> None:
    sam, image = FakeSam(), np.zeros((5, 7, 3), np.uint8)
    found = sam_regions(sam, image)
    assert sam.options["points_per_side"] == 8
    pixels = torch.zeros(1, 3, 10, 14)
    assert (regions_of(Pictures(pixels, (image,)), sam)[0] == found).all()
    given = np.ones((5, 7), np.int32)
    assert regions_of(Pictures(pixels, (image,), (given,)), sam)[0] is given
    with pytest.raises(ConfigError, match="region maps"):
        regions_of(Pictures(pixels, (image,)))
    with pytest.raises(ShapeError, match=r"7x5.*5x7"):
        check_regions(given.T, (5, 7))


@pytest.mark.parametrize("size_hw", [(3, 5), (112, 149), (150, 200), (301, 17)])
def test_resizing_is_torchs_nearest(size_hw: tuple[int, int]) -> None:
    ids = torch.randint(0, 1000, (2, 150, 200))
    theirs = F.interpolate(ids[:, None].float(), size=size_hw, mode="nearest")[:, 0].long()
    assert torch.equal(resize_regions(ids, size_hw), theirs)
    large = ids + 2**30  # no float32 holds these
    assert torch.equal(resize_regions(large, size_hw), theirs + 2**30)


def write(path: Path, kind: str) -> Path:
    if kind == "npy":
        np.save(path.with_suffix(".npy"), IDS)
    elif kind == "npz":
        np.savez_compressed(path.with_suffix(".npz"), instance_mask=IDS)
    elif kind == "palette":
        image = Image.fromarray(IDS.astype(np.uint8)).convert("L")
        image = image.copy()
        image.putpalette([value for i in range(256) for value in (255 - i, 0, i)])
        assert image.mode == "P"
        image.save(path.with_suffix(".png"))
    else:
        Image.fromarray(IDS.astype(np.uint8 if kind == "png8" else np.uint16)).save(path.with_suffix(".png"))
    return path.with_suffix(".png" if kind.startswith("p") else f".{kind}")


@pytest.mark.parametrize("kind", ["png8", "png16", "palette", "npy", "npz"])
def test_files(tmp_path: Path, kind: str) -> None:
    ids = read_regions(write(tmp_path / "im", kind))
    assert ids.dtype == np.int32
    assert (ids == IDS).all()


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such region file"):
        read_regions(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("hello")
    Image.new("RGB", (4, 3)).save(tmp_path / "rgb.png")
    np.save(tmp_path / "float.npy", IDS / 2)
    np.save(tmp_path / "negative.npy", IDS - 1)
    np.save(tmp_path / "pickle.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=IDS, b=IDS)
    for name in ("text.png", "rgb.png", "float.npy", "negative.npy", "pickle.npy", "two.npz"):
        with pytest.raises(ImageError, match=name):
            read_regions(tmp_path / name)


def test_folder(tmp_path: Path) -> None:
    write(tmp_path / "dog", "png16")
    write(tmp_path / "two", "npy")
    write(tmp_path / "two", "npz")
    folder = RegionFolder(tmp_path)
    assert (folder("photos/dog.jpg", (3, 4)) == IDS).all()
    with pytest.raises(ImageError, match=r"photos/cat.jpg: no regions.*expected cat"):
        folder("photos/cat.jpg", (3, 4))
    with pytest.raises(ImageError, match=r"two.npy, two.npz"):
        folder("two.jpg", (3, 4))
    with pytest.raises(ShapeError, match=r"dog.png.*3x4.*4x3"):
        folder("dog.jpg", (4, 3))
    with pytest.raises(ConfigError, match="does not exist"):
        RegionFolder(tmp_path / "none")
