"""Pascal Context's annotations as label images: 0 background, 1 to 59 classes by name.

Two forms are published, and both are read:

- `trainval_merged.json` of PASCAL in Detail, which mmseg's benchmark is made from. Every mask is in COCO's
  compressed run lengths, painted in the order of the file; a category's number is that of the 459 classes.
  Source: github.com/zhanghang1989/detail-api at 568ef44, PythonAPI/detail/__init__.py (getMask).
- a folder of `.mat` files from the data set's own page (Mottaghi et al., CVPR 2014): a matrix `LabelMap` of
  1 to 459. It has no lists of images; they are VOC 2010's own, of ImageSets/Main.

The 59 classes are found among the 459 by their names: a class's number is its place in the list.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io

from ovseg.errors import ConfigError
from ovseg.prepare.conversion import write_labels, write_text
from ovseg.prepare.instance_files import class_names
from ovseg.rle import decode_mask, from_coco

LABELS = "SegmentationClassContext"
LISTS = "ImageSets/SegmentationContext"
SPLITS = ("train", "val")
#: What the parts of trainval_merged.json must hold.
PARTS = {
    "images": ("image_id", "file_name", "height", "width", "phase"),
    "annos_segmentation": ("image_id", "category_id", "segmentation"),
}


class Masks(NamedTuple):
    """An image of trainval_merged.json.

    Attributes:
        target: its label image.
        image_hw: its size.
        masks: number of the class, and the mask; later ones cover earlier ones.
    """

    target: Path
    image_hw: tuple[int, int]
    masks: Sequence[tuple[int, Mapping[str, Any]]]


class Matrix(NamedTuple):
    """An image of the .mat files.

    Attributes:
        target: its label image.
        source: its file.
    """

    target: Path
    source: Path


@cache
def label_table() -> np.ndarray:
    """From the numbers of the 459 classes, 0 is none, to 0 background and 1 to 59: `(460,)` uint8."""
    all_names = class_names("context459")
    table = np.zeros(len(all_names) + 1, np.uint8)
    for label, name in enumerate(class_names("context59"), start=1):
        table[1 + all_names.index(name)] = label
    return table


def read_detail(path: Path, out: Path) -> tuple[list[Masks], dict[str, list[str]]]:
    """The images of trainval_merged.json, and the names of each split.

    Raises:
        ConfigError: no such file, or another form.
    """
    try:
        told = json.loads(path.read_bytes())
        images, annotations = (
            [{key: each[key] for key in keys} for each in told[part]] for part, keys in PARTS.items()
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is not Pascal Context's trainval_merged.json: {type(error).__name__}: {error}. Expected "
            + " and ".join(f"'{part}' ({', '.join(keys)})" for part, keys in PARTS.items())
        ) from error
    masks: dict[Any, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for each in annotations:
        masks[each["image_id"]].append((each["category_id"], each["segmentation"]))
    items, names = [], {split: [] for split in SPLITS}  # type: ignore[var-annotated]
    for image in images:
        if image["phase"] not in names:
            continue
        stem = Path(image["file_name"]).stem
        names[image["phase"]].append(stem)
        image_hw = (image["height"], image["width"])
        items.append(Masks(out / LABELS / f"{stem}.png", image_hw, masks[image["image_id"]]))
    if not items:
        raise ConfigError(f"{path} has no image of phase {' or '.join(SPLITS)}")
    return items, names


def read_matrices(folder: Path, out: Path) -> tuple[list[Matrix], dict[str, list[str]]]:
    """The .mat files of VOC 2010's images, and the names of each split.

    Raises:
        ConfigError: no .mat files, or no lists of VOC 2010 in `out`.
    """
    there = {each.stem for each in folder.glob("*.mat")}
    if not there:
        raise ConfigError(f"no .mat files in {folder}: expected those of Pascal Context's trainval.tar.gz")
    names = {}
    for split in SPLITS:
        listing = out / "ImageSets" / "Main" / f"{split}.txt"
        try:
            names[split] = [each for each in listing.read_text(encoding="utf-8").split() if each in there]
        except OSError as error:
            raise ConfigError(
                f"no {listing}: the .mat files come without lists, VOC 2010's own are needed (unpack "
                f"VOCtrainval_03-May-2010.tar, and say its folder VOC2010 with --out)"
            ) from error
    items = [
        Matrix(out / LABELS / f"{stem}.png", folder / f"{stem}.mat")
        for split in SPLITS
        for stem in names[split]
    ]
    if not items:
        raise ConfigError(f"no .mat file in {folder} is of an image that {out}/ImageSets/Main lists")
    return items, names


def convert_masks(item: Masks) -> str | None:
    """One image of trainval_merged.json; what exists is left as it is.

    Returns:
        What was wrong with it, or None.
    """
    target, image_hw, masks = item
    if target.exists():
        return None
    table, labels = label_table(), np.zeros(image_hw, np.uint8)
    for number, segmentation in masks:
        if not 0 <= number < len(table) or (number and not table[number]):
            return f"{target.stem}: category {number} is none of the 59 classes"
        mask = decode_mask(from_coco(segmentation, image_hw))
        if mask.shape != tuple(image_hw):
            return f"{target.stem}: a mask is {mask.shape}, its image {tuple(image_hw)} (HxW)"
        labels[mask] = table[number]
    write_labels(labels, target)
    return None


def convert_matrix(item: Matrix) -> str | None:
    """One .mat file; what exists is left as it is.

    Returns:
        What was wrong with it, or None.
    """
    target, source = item
    if target.exists():
        return None
    try:
        stored = scipy.io.loadmat(source, variable_names=["LabelMap"])
    except (OSError, ValueError, NotImplementedError, scipy.io.matlab.MatReadError) as error:
        return f"{source}: cannot be read as a MATLAB file: {error}"
    numbers = stored.get("LabelMap")
    if numbers is None or numbers.ndim != 2 or numbers.dtype.kind not in "ui":
        return f"{source}: expected a matrix LabelMap of whole numbers"
    table = label_table()
    if numbers.max(initial=0) >= len(table) or numbers.min(initial=0) < 0:
        return f"{source}: number {numbers.max()} is none of Pascal Context's 0 to {len(table) - 1}"
    write_labels(table[numbers], target)
    return None


def write_lists(names: Mapping[str, Sequence[str]], out: Path) -> None:
    """The lists that datasets read."""
    for split, stems in names.items():
        write_text("".join(f"{stem}\n" for stem in sorted(stems)), out / LISTS / f"{split}.txt")
