"""Regions that may hold an object, whatever it is: from SAM, or from a file that any detector has written.

They are `Detections` of the one class "object".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.detection_results import Detections
from ovseg.errors import ConfigError, ImageError
from ovseg.rle import encode_mask, from_coco

#: What proposals are called.
OBJECT = ("object",)


def sam_proposals(records: Sequence[Mapping[str, Any]], image_hw: tuple[int, int]) -> Detections:
    """SAM's automatic masks; the IoU that it predicts is the score.

    Args:
        records: of `SamEncoder.automatic_masks`.
        image_hw: the image's size.
    """
    kept = [each for each in records if np.any(each["segmentation"])]
    boxes = [_extent(np.asarray(each["segmentation"], bool)) for each in kept]
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.zeros(len(kept), np.int64),
        np.array([each.get("predicted_iou", 1.0) for each in kept], np.float32).clip(0, 1),
        OBJECT,
        image_hw,
        tuple(encode_mask(np.asarray(each["segmentation"], bool)) for each in kept),
    )


def coco_proposals(records: Iterable[Mapping[str, Any]], image_hw: tuple[int, int]) -> Detections:
    """Entries of a COCO file; boxes are cut to the image, and empty ones left out.

    Args:
        records: each with "bbox" (xywh), and perhaps "score" (1 without) and "segmentation". Masks are kept
            where every entry has one.
        image_hw: the image's size.
    """
    kept, boxes = [], []
    height, width = image_hw
    for each in records:
        x, y, w, h = (float(side) for side in each["bbox"])
        box = [max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)]
        if box[2] > box[0] and box[3] > box[1]:
            kept.append(each)
            boxes.append(box)
    masks = None
    if all(each.get("segmentation") for each in kept):
        masks = tuple(from_coco(each["segmentation"], image_hw) for each in kept)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.zeros(len(kept), np.int64),
        np.array([each.get("score", 1.0) for each in kept], np.float32),
        OBJECT,
        image_hw,
        masks,
    )


class ProposalFile:
    """Proposals of many images from one JSON file in COCO's form.

    Args:
        path: a list of results, or an annotation file with "images" and "annotations". An image is found by
            its file name there, or by its `image_id`: its name without suffix, as text or as a number.

    Raises:
        ConfigError: the file cannot be read, or is neither.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read as a proposal file: {error}") from error
        images = content.get("images", []) if isinstance(content, dict) else []
        records = content.get("annotations") if isinstance(content, dict) else content
        if not isinstance(records, list) or not all("image_id" in e and "bbox" in e for e in records):
            raise ConfigError(
                f"{path}: a proposal file is a list of COCO results, each with image_id and bbox, or an "
                f"annotation file with images and annotations"
            )
        self._ids = {Path(each["file_name"]).stem: str(each["id"]) for each in images}
        self._records: dict[str, list[dict[str, Any]]] = {each: [] for each in self._ids.values()}
        for each in records:
            self._records.setdefault(str(each["image_id"]), []).append(each)

    def __call__(self, image: str | os.PathLike[str], image_hw: tuple[int, int]) -> Detections:
        """The proposals of an image; there may be none in a file that lists the image.

        Args:
            image: the image's path, of which only the stem is read.
            image_hw: its size.

        Raises:
            ImageError: the file does not know the image, or an entry of it is damaged.
        """
        stem = Path(image).stem
        key = self._ids.get(stem, stem)
        if key not in self._records and stem.isdigit():
            key = str(int(stem))
        if key not in self._records:
            raise ImageError(f"{image}: '{self.path}' has no proposals for an image of this name")
        try:
            return coco_proposals(self._records[key], image_hw)
        except (KeyError, TypeError, ValueError) as error:
            raise ImageError(f"{image}: a proposal in '{self.path}' is damaged: {error}") from error


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
