"""YOLO's text files: a line for each object, all numbers as shares of the image."""

from __future__ import annotations

import json
from collections.abc import Sequence

import cv2
import numpy as np

from ovseg.detection_results import Detections


def boxes(detections: Detections) -> str:
    """A line `class x y width height` for each object."""
    return detections.to_yolo()


def polygons(detections: Detections) -> str:
    """A line `class x1 y1 x2 y2 ...` for each mask: the outline of its largest piece, without holes."""
    height, width = detections.image_hw
    lines = []
    for index, label in enumerate(detections.labels.tolist()):
        mask = detections.mask(index).astype(np.uint8)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        outline = max(outlines, key=cv2.contourArea)[:, 0]
        if len(outline) < 3:  # a line of pixels: its box
            left, top, right, bottom = detections.boxes_xyxy[index]
            outline = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        shares = (outline / [width, height]).ravel().tolist()
        lines.append(" ".join([str(label), *(f"{share:.6f}" for share in shares)]))
    return "".join(line + "\n" for line in lines)


def data_file(names: Sequence[str], folder: str) -> str:
    """YOLO's `data.yaml`: where the text files are, and what the class numbers mean."""
    listed = "".join(
        f"  {index}: {json.dumps(name, ensure_ascii=False)}\n" for index, name in enumerate(names)
    )
    return f"# written by ovseg: text files are in {folder}/\nnc: {len(names)}\nnames:\n{listed}"
