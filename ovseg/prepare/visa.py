"""VisA: its split file, and its conversion to the layout of MVTec AD.

Source: Zou et al., "SPot-the-Difference", ECCV 2022; github.com/amazon-science/spot-diff at 2a692ab,
utils/prepare_data.py: columns object, split, label, image, mask; a mask's pixels hold kinds of defects, 0 for
none, and become 255.
"""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ovseg.errors import ConfigError
from ovseg.prepare.conversion import part_of, write_labels

COLUMNS = ("object", "split", "label", "image", "mask")
SPLIT_FILE = "split_csv/1cls.csv"


class Row(NamedTuple):
    """An image of the split file.

    Attributes:
        category: "candle", ...
        split: "train" or "test".
        damaged: whether it has a defect.
        image, mask: below the data set's root; a good image has no mask.
    """

    category: str
    split: str
    damaged: bool
    image: str
    mask: str


def read_split(path: Path) -> list[Row]:
    """The rows of a split file.

    Raises:
        ConfigError: no such file, other columns, or nothing in it.
    """
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            reader = csv.DictReader(lines)
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise ConfigError(
                    f"{path} has columns {', '.join(reader.fieldnames or ())}: expected {', '.join(COLUMNS)}"
                )
            rows = [
                Row(each["object"], each["split"], each["label"] != "normal", each["image"], each["mask"])
                for each in reader
            ]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not rows:
        raise ConfigError(f"{path} names no image")
    return rows


def convert_row(row: Row, root: Path, out: Path) -> str | None:
    """One image with its mask; images are linked where the file system can, masks written as 0 and 255.

    Returns:
        What was wrong with it, or None.
    """
    if row.damaged and row.split == "train":
        return f"{row.image}: damaged, and for training: take a split of one class ({SPLIT_FILE})"
    defect = "bad" if row.damaged else "good"
    image = root / row.image
    if not image.is_file():
        return f"{image}: named by the split file, and not there"
    target = out / row.category / row.split / defect / image.name
    if row.damaged:
        mask = root / row.mask
        # the layout finds a mask by its image's name
        label = out / row.category / "ground_truth" / defect / f"{image.stem}.png"
        if not row.mask or not mask.is_file():
            return f"{image}: its mask '{row.mask}' is not there"
        if not label.exists():
            with Image.open(mask) as stored:
                numbers = np.array(stored)
            with Image.open(image) as picture:
                size = picture.size
            if numbers.shape != size[::-1]:
                return f"{mask}: {numbers.shape}, its image {size[::-1]}: expected a number for each pixel"
            write_labels(np.where(numbers != 0, 255, 0).astype(np.uint8), label)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        place(image, target)
    return None


def place(source: Path, target: Path) -> None:
    """A hard link, or a copy where there can be none."""
    part = part_of(target)
    part.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), part)
    except OSError:
        shutil.copyfile(source, part)
    os.replace(part, target)
