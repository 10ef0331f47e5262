"""COCO's files: what each image found, and one file of a whole run that pycocotools and its like read.

Every image has a small file of its own, so that a stopped run loses nothing; the run's files are joined from
these at its end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from io import TextIOBase
from pathlib import Path
from typing import Any

import numpy as np

from ovseg.answers import Answers
from ovseg.results import Segmentation
from ovseg.rle import encode_mask, mask_area

#: The run's file of each kind of annotation.
FILES = {
    "segment": "coco_segment.json",
    "instances": "coco_instances.json",
    "detect": "coco_detect.json",
    "panoptic": "panoptic.json",
}
Part = dict[str, Any]


def annotations_of(answers: Answers) -> Part:
    """What one image adds to the run's files, by task; annotations without ids."""
    part: Part = {"height": answers.image_hw[0], "width": answers.image_hw[1]}
    if answers.segmentation is not None:
        part["segment"] = _regions(answers.segmentation)
    if answers.instances is not None:
        part["instances"] = [_annotation(each) for each in answers.instances.detections().to_coco(0)]
        part["panoptic"] = answers.instances.segments_info()
    if answers.detections is not None:
        part["detect"] = [_annotation(each) for each in answers.detections.to_coco(0)]
    return part


def categories(names: Sequence[str], things: Sequence[bool | None] = ()) -> list[dict[str, Any]]:
    """COCO's categories: ids are class indices plus 1."""
    flags = tuple(things) or (None,) * len(names)
    return [
        {"id": index + 1, "name": name, "isthing": int(thing is not False)}
        for index, (name, thing) in enumerate(zip(names, flags, strict=True))
    ]


def join(
    stream: TextIOBase, task: str, parts: Iterable[tuple[str, Part]], classes: Sequence[dict[str, Any]]
) -> None:
    """Writes a run's file of one task, image by image.

    Args:
        stream: where to, as text.
        task: a key of `FILES`.
        parts: image names with what `annotations_of` gave; for panoptic also the `file_name` of the picture.
        classes: of `categories`.
    """
    parts = list(parts)
    stream.write('{"info": {"description": "written by ovseg"},\n"images": [')
    stream.write(",\n".join(_dump(_image(number, *each)) for number, each in enumerate(parts, start=1)))
    stream.write('],\n"annotations": [')
    for number, annotation in enumerate(_numbered(task, parts)):
        stream.write((",\n" if number else "") + _dump(annotation))
    stream.write(f'],\n"categories": {_dump(classes)}}}\n')


def read_part(path: Path) -> Part:
    """An image's own file."""
    return json.loads(path.read_bytes())


def _numbered(task: str, parts: Sequence[tuple[str, Part]]) -> Iterator[dict[str, Any]]:
    count = 0
    for image_id, (_, part) in enumerate(parts, start=1):
        if task == "panoptic":
            yield {"image_id": image_id, "file_name": part["file_name"], "segments_info": part["panoptic"]}
            continue
        for annotation in part[task]:
            count += 1
            yield {"id": count, "image_id": image_id, **annotation}


def _image(number: int, name: str, part: Part) -> dict[str, Any]:
    return {"id": number, "file_name": name, "height": part["height"], "width": part["width"]}


def _annotation(found: dict[str, Any]) -> dict[str, Any]:
    """A result as an annotation: one with an area, and not a crowd."""
    del found["image_id"]
    _, _, width, height = found["bbox"]
    return {"area": width * height, **found, "iscrowd": 0}


def _regions(segmentation: Segmentation) -> list[dict[str, Any]]:
    """A class's pixels as one annotation."""
    found = []
    for label in np.unique(segmentation.labels).tolist():
        if label == segmentation.void:
            continue
        mask = segmentation.labels == label
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [int(columns[0]), int(rows[0])]
        box += [int(columns[-1]) + 1 - box[0], int(rows[-1]) + 1 - box[1]]
        rle = encode_mask(mask)
        score = float(segmentation.confidence[mask].mean(dtype=np.float64))
        found.append(
            {
                "category_id": label + 1,
                "bbox": box,
                "area": mask_area(rle),
                "segmentation": rle,
                "score": score,
                "iscrowd": 0,
            }
        )
    return found


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
