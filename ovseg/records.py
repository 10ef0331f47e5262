"""What a run notes of an image: its answers as a line of JSON, and as words for a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from ovseg.answers import Answers
from ovseg.counting_results import Counts
from ovseg.detection_results import Detections
from ovseg.panoptic_results import Panoptic
from ovseg.results import Segmentation

Record = dict[str, Any]


def record_of(answers: Answers) -> Record:
    """The numbers of all tasks, JSON-ready, without pictures and masks."""
    found: Record = {}
    if answers.segmentation is not None:
        classes, void = class_statistics(answers.segmentation)
        share = round(void / answers.segmentation.labels.size, 6)
        found |= {"classes": classes, "void": {"pixels": void, "share": share}}
    if answers.instances is not None:
        found["instances"] = _segments(answers.instances)
    if answers.detections is not None:
        found["detections"] = _objects(answers.detections)
    if answers.anomaly is not None:
        found["anomaly"] = {
            key: round(value, 6) if isinstance(value, float) else value
            for key, value in answers.anomaly.summary().items()
        }
    if answers.counts is not None:
        found["counts"] = _numbers(answers.counts)
    return found


def in_words(record: Record) -> str:
    """A record in a line: "cat 34%, grass 12%; 2 cat; ...", or "none"."""
    parts = []
    if "classes" in record:
        shares = [f"{each['share']:.0%}" if each["share"] >= 0.005 else "<1%" for each in record["classes"]]
        pairs = zip(record["classes"], shares, strict=True)
        parts.append(", ".join(f"{each['name']} {share}" for each, share in pairs))
    for task in ("instances", "detections"):
        if task in record:
            numbers: dict[str, int] = {}
            for each in record[task]:
                numbers[each["name"]] = numbers.get(each["name"], 0) + 1
            parts.append(", ".join(f"{number} {name}" for name, number in numbers.items()))
    if "counts" in record:
        parts.append(", ".join(f"{each['number']:g} {each['name']}" for each in record["counts"]))
    if "anomaly" in record:
        found = record["anomaly"]
        verdict = {True: "anomalous, ", False: "normal, ", None: ""}[found["anomalous"]]
        parts.append(f"{verdict}score {found['score']:.3g}")
    return "; ".join(part or "none" for part in parts)


def class_statistics(result: Segmentation) -> tuple[list[Record], int]:
    """The classes found, largest first: pixels, share, mean confidence. And the number of void pixels."""
    flat = result.labels.ravel().astype(np.int64)
    seen = flat != result.void
    count = len(result.names)
    pixels = np.bincount(flat[seen], minlength=count)
    confidence = np.bincount(flat[seen], weights=result.confidence.ravel()[seen], minlength=count)
    found = [
        {
            "id": int(index),
            "name": result.names[index],
            "pixels": int(pixels[index]),
            "share": round(float(pixels[index] / flat.size), 6),
            "confidence": round(float(confidence[index] / pixels[index]), 4),
        }
        for index in np.argsort(-pixels, kind="stable")
        if pixels[index]
    ]
    return found, int(flat.size - seen.sum())


def _segments(panoptic: Panoptic) -> list[Record]:
    return [
        {
            "id": int(each["category_id"]),
            "name": panoptic.names[each["category_id"]],
            "thing": each["isthing"],
            "score": round(each["score"], 4),
            "pixels": each["area"],
            "bbox": each["bbox"],
        }
        for each in panoptic.segments_info(range(len(panoptic.names)))
    ]


def _objects(detections: Detections) -> list[Record]:
    found = []
    for index, (box, label) in enumerate(zip(detections.boxes_xyxy, detections.labels, strict=True)):
        left, top, right, bottom = box.tolist()
        record: Record = {
            "id": int(label),
            "name": detections.names[label],
            "score": round(float(detections.scores[index]), 4),
            "bbox": [left, top, right - left, bottom - top],
        }
        if detections.attributes is not None:
            chances = (round(float(each), 3) for each in detections.attributes[index])
            record["attributes"] = dict(zip(detections.attribute_names, chances, strict=True))
        found.append(record)
    return found


def _numbers(counts: Counts) -> list[Record]:
    found = sorted((each for each in counts.classes if each.number > 0), key=lambda each: -each.number)
    return [
        {
            "id": each.class_index,
            "name": each.name,
            "number": round(each.number, 3),
            "uncertainty": round(each.uncertainty, 3),
            "points_xy": each.points_xy.astype(float).round(1).tolist(),
        }
        for each in found
    ]
