"""What instance and panoptic segmentation answer: every pixel in one segment at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8
from scipy import ndimage

from ovseg.detection_results import Detections
from ovseg.errors import ShapeError
from ovseg.rle import encode_mask


@dataclass(frozen=True)
class Panoptic:
    """Things one by one, stuff by class.

    Attributes:
        segments: `(H, W)` numbers 1..S, and 0 where there is no segment.
        labels: `(S,)` class index of segment `i + 1`.
        scores: `(S,)` mean probability of the class inside, in [0, 1].
        is_thing: `(S,)` whether the segment is one object; else it is all of a stuff class.
        names: the K class names.
    """

    segments: Int32[np.ndarray, "H W"]
    labels: Int64[np.ndarray, " S"]
    scores: Float32[np.ndarray, " S"]
    is_thing: Bool[np.ndarray, " S"]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_hw(self) -> tuple[int, int]:
        """Pixels `(H, W)`."""
        return self.segments.shape[0], self.segments.shape[1]

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """`(left, top, right, bottom)` of each segment, far edges exclusive; zeros where it has no pixel."""
        found = ndimage.find_objects(self.segments, max_label=len(self))
        return [
            (0, 0, 0, 0) if each is None else (each[1].start, each[0].start, each[1].stop, each[0].stop)
            for each in found
        ]

    def detections(self) -> Detections:
        """The things, with masks, the surest first."""
        order = np.argsort(-self.scores, kind="stable")
        boxes = self.boxes()
        order = order[[self.is_thing[each] and any(boxes[each]) for each in order]]
        masks = []
        for each in order:
            left, top, right, bottom = boxes[each]
            piece = self.segments[top:bottom, left:right] == each + 1
            masks.append(encode_mask(piece, at_xy=(left, top), image_hw=self.image_hw))
        return Detections(
            np.array([boxes[each] for each in order], np.float32).reshape(-1, 4),
            self.labels[order],
            self.scores[order],
            self.names,
            self.image_hw,
            tuple(masks),
        )

    def with_things(self, things: Detections) -> Panoptic:
        """The stuff of this result under other things (redrawn ones), the surer above the less sure.

        Raises:
            ShapeError: the things have no masks, or are of another image.
        """
        if things.masks is None or things.image_hw != self.image_hw:
            raise ShapeError(
                f"things need masks of this image's size {self.image_hw[0]}x{self.image_hw[1]} (HxW)"
            )
        stuff = np.flatnonzero(~self.is_thing)
        number = np.zeros(len(self) + 1, np.int32)
        number[stuff + 1] = np.arange(len(stuff)) + 1
        segments = number[self.segments]
        for index in np.argsort(things.scores, kind="stable"):
            segments[things.mask(int(index))] = len(stuff) + index + 1
        return Panoptic(
            segments,
            np.concatenate([self.labels[stuff], things.labels]),
            np.concatenate([self.scores[stuff], things.scores]),
            np.arange(len(stuff) + len(things)) >= len(stuff),
            self.names,
        )

    def to_panoptic_png(self) -> UInt8[np.ndarray, "H W 3"]:
        """COCO's panoptic picture: the segment's number is R + 256 G + 256^2 B, 0 is unlabelled."""
        numbers = self.segments.astype(np.uint32)
        return np.stack([(numbers >> shift) & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)

    def segments_info(self, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO's list of segments, JSON-ready; with each its score and whether it is a thing.

        Args:
            category_ids: the data set's number of each class, by default its index plus 1.
        """
        if category_ids is not None and len(category_ids) != len(self.names):
            raise ShapeError(f"{len(self.names)} classes came with {len(category_ids)} category_ids")
        areas = np.bincount(self.segments.ravel(), minlength=len(self) + 1)[1:]
        found = []
        for index, (left, top, right, bottom) in enumerate(self.boxes()):
            if not areas[index]:  # covered by others
                continue
            label = int(self.labels[index])
            found.append(
                {
                    "id": index + 1,
                    "category_id": label + 1 if category_ids is None else int(category_ids[label]),
                    "iscrowd": 0,
                    "area": int(areas[index]),
                    "bbox": [left, top, right - left, bottom - top],
                    "score": float(self.scores[index]),
                    "isthing": bool(self.is_thing[index]),
                }
            )
        return found
