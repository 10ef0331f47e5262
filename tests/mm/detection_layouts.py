"""Detection data sets of three images on disk, in COCO's and in LVIS's form.

Every image tells its own objects: red is the class plus 1, green the number of the object. Files called .jpg
hold PNG data, so that nothing is lost to compression. Categories stand in the file in another order than
their numbers, some classes of the file are none of the data set's, and numbers have gaps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovseg.detection_results import Detections
from ovseg.panoptic_results import Panoptic

SIZES = ((61, 83), (48, 57), (70, 70))


def picture(hw: tuple[int, int], labels: Sequence[int]) -> np.ndarray:
    """An image with a row of L-shaped objects, from left to right."""
    image = np.full((*hw, 3), 7, np.uint8)
    image[..., :2] = 0
    if not len(labels):
        return image
    width = hw[1] // len(labels)
    for number, label in enumerate(labels, start=1):
        left, top = (number - 1) * width + 1, 2 * number
        for rows, columns in (
            (slice(top, hw[0] - 4), slice(left, left + width // 2)),
            (slice(hw[0] - 12, hw[0] - 4), slice(left, left + width - 3)),
        ):
            image[rows, columns, 0] = label % 250 + 1
            image[rows, columns, 1] = number
            image[rows, columns, 2] = label // 250
    return image


def segments(image: np.ndarray, names: tuple[str, ...]) -> Panoptic:
    """What is in such a picture."""
    numbers = image[..., 1].astype(np.int32)
    count = int(numbers.max())
    colors = [image[numbers == number][0] for number in range(1, count + 1)]
    labels = [int(red) - 1 + 250 * int(blue) for red, _, blue in colors]
    scores = np.linspace(0.9, 0.8, count, dtype=np.float32)
    return Panoptic(numbers, np.array(labels, np.int64), scores, np.ones(count, bool), names)


def objects(image: np.ndarray, names: tuple[str, ...]) -> Detections:
    """The same as boxes with masks."""
    return segments(image, names).detections()


def write_coco(
    root: Path, names: tuple[str, ...], *, file: str, folders: Sequence[str], lvis: bool = False
) -> dict[str, Any]:
    """Three images with objects of the first, the last and other classes; returns the annotation file.

    Args:
        root: of the data set.
        names: of its classes.
        file: the annotation file below the root.
        folders: of each image below the root.
        lvis: in LVIS's form.
    """
    last = len(names) - 1
    shown = ((0, last, last), (1, last // 2), (last, 2, 0, 0))
    numbers = [3 * label + 2 for label in range(len(names))]
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    for label in reversed(range(len(names))):
        entry = {"id": numbers[label], "name": names[label].replace(" ", "_") if lvis else names[label]}
        content["categories"].append(entry)
    if not lvis:
        content["categories"].insert(1, {"id": 1, "name": "something else"})
    for index, (hw, labels, folder) in enumerate(zip(SIZES, shown, folders, strict=True)):
        image, image_id = picture(hw, labels), 10 * index + 7
        path = root / folder / f"{image_id:012d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, format="PNG")
        record: dict[str, Any] = {"id": image_id, "height": hw[0], "width": hw[1]}
        if lvis:
            record["coco_url"] = f"http://images.example.org/{folder}/{path.name}"
            record["neg_category_ids"] = [numbers[5]]
            record["not_exhaustive_category_ids"] = [numbers[labels[0]]]
        else:
            record["file_name"] = path.name
        content["images"].append(record)
        there = objects(image, names).to_coco(image_id, numbers)
        for each in there:
            each.pop("score")
            extra = {} if lvis else {"iscrowd": 0}
            content["annotations"].append(each | {"id": len(content["annotations"]) + 1} | extra)
    if not lvis:  # an image without an object of the data set's classes
        path = root / folders[0] / "000000000099.jpg"
        Image.fromarray(picture((40, 50), ())).save(path, format="PNG")
        content["images"].append({"id": 99, "height": 40, "width": 50, "file_name": path.name})
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    return content
