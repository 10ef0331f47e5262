"""What was found as shapes, one by one: what formats of polygons are written from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from ovseg.detection_results import Detections
from ovseg.panoptic_results import Panoptic
from ovseg.results import Segmentation

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shape:
    """An object, or a region of one class.

    Attributes:
        name: of the class.
        label: its index.
        score: in [0, 1].
        box_xyxy: pixels; far edges are exclusive.
        mask: its pixels, or None where only the box is known.
        corner_xy: of the mask's top left pixel in the image.
        is_thing: whether it is one object; None where that was not asked.
    """

    name: str
    label: int
    score: float
    box_xyxy: Box
    mask: Bool[np.ndarray, "h w"] | None = None
    corner_xy: tuple[int, int] = (0, 0)
    is_thing: bool | None = None


@singledispatch
def shapes_of(result: Any) -> Iterator[Shape]:
    """The shapes of a result: regions of connected pixels of a segmentation, segments, or objects."""
    raise TypeError(f"a {type(result).__name__} has no shapes")


@shapes_of.register
def _(result: Segmentation) -> Iterator[Shape]:
    shown = np.where(result.labels == result.void, 0, result.labels.astype(np.int32) + 1)
    for label, place in enumerate(ndimage.find_objects(shown)):
        if place is None:
            continue
        regions, count = ndimage.label(shown[place] == label + 1)
        scores = ndimage.mean(result.confidence[place], regions, range(1, count + 1))
        top, left = place[0].start, place[1].start
        for number, part in enumerate(ndimage.find_objects(regions), start=1):
            mask = regions[part] == number
            corner = left + part[1].start, top + part[0].start
            name = result.names[label]
            yield Shape(name, label, float(scores[number - 1]), _box(corner, mask), mask, corner)


@shapes_of.register
def _(result: Panoptic) -> Iterator[Shape]:
    for index, (left, top, right, bottom) in enumerate(result.boxes()):
        if right == left:  # covered by others
            continue
        mask = result.segments[top:bottom, left:right] == index + 1
        label, is_thing = int(result.labels[index]), bool(result.is_thing[index])
        box = (float(left), float(top), float(right), float(bottom))
        yield Shape(result.names[label], label, float(result.scores[index]), box, mask, (left, top), is_thing)


@shapes_of.register
def _(result: Detections) -> Iterator[Shape]:
    for index in range(len(result)):
        label, score = int(result.labels[index]), float(result.scores[index])
        left, top, right, bottom = result.boxes_xyxy[index].tolist()
        whole = None if result.masks is None else result.mask(index)
        if whole is None or not whole.any():
            yield Shape(result.names[label], label, score, (left, top, right, bottom), is_thing=True)
            continue
        place = ndimage.find_objects(whole.astype(np.uint8))[0]
        mask, corner = whole[place], (place[1].start, place[0].start)
        yield Shape(result.names[label], label, score, (left, top, right, bottom), mask, corner, True)


def _box(corner_xy: tuple[int, int], mask: np.ndarray) -> Box:
    left, top = corner_xy
    return float(left), float(top), float(left + mask.shape[1]), float(top + mask.shape[0])
