"""labelme's JSON: what labelme opens beside an image, to be looked at and corrected by hand.

The fields are those that labelme's own reader demands (`labelme/_label_file.py` of wkentaro/labelme at
00385ce). Its polygons have no holes: a region with holes is cut into several that share a `group_id`, which
is labelme's way to say that they are one object.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ovseg.images import BinaryStream
from ovseg.outputs.polygons import simple_outlines
from ovseg.outputs.shapes import Shape, shapes_of

#: The version of labelme whose format this is.
VERSION = "5.5.0"


def write(stream: BinaryStream, result: Any) -> None:
    """The shapes of a result. The image's path is added by `add_image`, when it is known.

    Args:
        stream: where to.
        result: a `Segmentation`, `Panoptic` or `Detections`.
    """
    found = [each for number, shape in enumerate(shapes_of(result), 1) for each in _shapes(shape, number)]
    content = {
        "version": VERSION,
        "flags": {},
        "shapes": found,
        "imagePath": "",
        "imageData": None,
        "imageHeight": result.image_hw[0],
        "imageWidth": result.image_hw[1],
    }
    stream.write(json.dumps(content, ensure_ascii=False).encode())


def add_image(content: bytes, path: Path, image: Path) -> bytes:
    """A file's content with the path of its image.

    Args:
        content: of `write`.
        path: of the file, to which labelme takes the image's path as relative.
        image: where it is.
    """
    try:
        relative = os.path.relpath(image, path.parent)
    except ValueError:  # Windows: two drives
        relative = os.path.abspath(image)
    found = json.loads(content) | {"imagePath": Path(relative).as_posix()}
    return json.dumps(found, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _shapes(shape: Shape, number: int) -> list[dict[str, Any]]:
    left, top, right, bottom = shape.box_xyxy
    if shape.mask is None:
        rings, kind = [[[left, top], [right, bottom]]], "rectangle"
    else:
        outlines = simple_outlines(shape.mask, shape.corner_xy)
        rings, kind = [ring.astype(float).tolist() for ring in outlines], "polygon"
    return [
        {
            "label": shape.name,
            "points": points,
            "group_id": number if len(rings) > 1 else None,
            "description": "",
            "shape_type": kind,
            "flags": {},
            "mask": None,
            "score": round(shape.score, 4),
        }
        for points in rings
    ]
