"""Label images whose numbers only change: COCO-Stuff's pixel maps and Cityscapes' label ids."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ovseg.prepare.conversion import write_labels

VOID = 255
#: COCO-Stuff's numbers are COCO's category numbers minus 1: those that COCO reserves and never uses.
UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
THINGS = tuple(number for number in range(90) if number not in UNUSED)
STUFF = tuple(range(91, 182))
#: Cityscapes' ids of the 19 classes that are evaluated, in the order of their trainIds; the ids end at 33.
#: Source: github.com/mcordts/cityscapesScripts, helpers/labels.py.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


class LabelMap(NamedTuple):
    """A label image to be made of another.

    Attributes:
        source, target: files.
        kind: of `TABLES`.
    """

    source: Path
    target: Path
    kind: str


@cache
def object_table() -> np.ndarray:
    """From COCO-Stuff's numbers to COCO-Object's: `(256,)` int16, -1 where no map has a number.

    The protocol of GroupViT (arXiv 2202.11094): things are 1 to 80, all else is background, 0.
    """
    table = np.full(256, -1, np.int16)
    table[list(STUFF)] = table[VOID] = 0
    table[list(THINGS)] = np.arange(1, len(THINGS) + 1)
    return table


@cache
def stuff_table() -> np.ndarray:
    """From COCO-Stuff's numbers, which have gaps, to the 171 that mmseg's dataset expects; 255 stays."""
    table = np.full(256, -1, np.int16)
    table[list(THINGS + STUFF)] = np.arange(len(THINGS + STUFF))
    table[VOID] = VOID
    return table


@cache
def cityscapes_table() -> np.ndarray:
    """From Cityscapes' ids to its trainIds; what is not evaluated is 255."""
    table = np.full(256, -1, np.int16)
    table[: CITYSCAPES_IDS[-1] + 1] = VOID
    table[list(CITYSCAPES_IDS)] = np.arange(len(CITYSCAPES_IDS))
    return table


#: By kind: the table, and whose numbers it reads.
TABLES = {
    "object": (object_table, "COCO-Stuff"),
    "stuff": (stuff_table, "COCO-Stuff"),
    "cityscapes": (cityscapes_table, "Cityscapes"),
}


def convert_map(label_map: LabelMap) -> str | None:
    """One label image; what exists is left as it is.

    Returns:
        What was wrong with it, or None.
    """
    source, target, kind = label_map
    if target.exists():
        return None
    try:
        with Image.open(source) as image:
            numbers = np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        return f"{source}: cannot be read: {error}"
    if numbers.ndim != 2 or numbers.dtype != np.uint8:
        return f"{source}: expected one byte per pixel, got {numbers.dtype} {numbers.shape}"
    make_table, whose = TABLES[kind]
    labels = make_table()[numbers]
    if (labels < 0).any():
        return f"{source}: number {numbers[labels < 0][0]} is none of {whose}'s (is it converted already?)"
    write_labels(labels.astype(np.uint8), target)
    return None
