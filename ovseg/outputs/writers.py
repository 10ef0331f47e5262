"""What a run writes for each image: a small function for each format and task, all in one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ovseg.answers import Answers, Task
from ovseg.batch import Writer
from ovseg.errors import ConfigError, unknown_name
from ovseg.images import BinaryStream
from ovseg.outputs import coco_files, geojson_files, label_files, labelme_files, yolo_files
from ovseg.outputs.drawing import count_overlay, detection_overlay, instance_overlay
from ovseg.outputs.heat_maps import anomaly_overlay
from ovseg.outputs.palette import Color, Scheme
from ovseg.outputs.visualize import overlay

#: Formats, and the tasks that have them.
FORMATS: dict[str, tuple[Task, ...]] = {
    "labels": ("segment", "instances", "anomaly"),
    "overlay": ("segment", "instances", "detect", "anomaly", "count"),
    "scores": ("segment", "anomaly", "count"),
    "coco": ("segment", "instances", "detect"),
    "panoptic": ("instances",),
    "yolo": ("instances", "detect"),
    "labelme": ("segment", "instances", "detect"),
    "geojson": ("segment", "instances", "detect"),
    "html": ("segment", "instances", "detect", "anomaly", "count"),
}
#: Other names that people use.
ALIASES = {
    "png": "labels",
    "label": "labels",
    "overlays": "overlay",
    "npz": "scores",
    "jpg": "overlay",
    "report": "html",
}

Draw = Callable[[np.ndarray, Any], Image.Image]
Save = Callable[[BinaryStream, Any], Any]


def build_writers(
    formats: Sequence[str],
    tasks: Sequence[Task] = ("segment",),
    *,
    opacity: float = 0.55,
    legend: bool = True,
    scheme: Scheme = "vivid",
    colors: Sequence[Color | None] | None = None,
    judged: bool = True,
) -> list[Writer]:
    """Writers by name, for those tasks that have something in that format.

    Args:
        formats: of `FORMATS`, or their aliases.
        tasks: what is asked of the images.
        opacity: of the overlay's colours.
        legend: draw it beside the overlay.
        scheme: of the colours, also of the label image's palette.
        colors: by class, where the vocabulary says so.
        judged: whether a threshold says what is anomalous; else there are no masks of it.

    Raises:
        ConfigError: an unknown name, or nothing to write.
    """
    chosen = check_formats(formats)
    if "html" in chosen and "overlay" not in chosen:  # the report shows the overlays
        chosen.append("overlay")
    drawing = drawing_of(opacity, legend, scheme, colors)
    writers = []
    for name in chosen:
        for task in (task for task in tasks if task in FORMATS[name]):
            if name == "overlay":
                writers.append(_picture(task, drawing[task]))
            elif (name, task) in FILES and (judged or (name, task) != ("labels", "anomaly")):
                writers.append(_file(name, task, *FILES[name, task]))
        if name == "labels" and "segment" in tasks:
            writers.append(
                _file(
                    "labels",
                    "segment",
                    ".png",
                    lambda stream, found: label_files.write_labels(stream, found, scheme=scheme),
                )
            )
    if {"coco", "panoptic"} & set(chosen) and set(FORMATS["coco"]) & set(tasks):
        writers.append(Writer("coco", "coco", ".json", _write_part))
    if not writers:
        raise ConfigError(
            f"nothing to write: the tasks {', '.join(tasks)} have no format of {', '.join(chosen)}"
        )
    return writers


def check_formats(formats: Sequence[str]) -> list[str]:
    """Formats by their names in `FORMATS`, each once.

    Raises:
        ConfigError: one that does not exist; the message lists them and the nearest match.
    """
    chosen = list(dict.fromkeys(ALIASES.get(name.strip().lower(), name.strip().lower()) for name in formats))
    for name in chosen:
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)
    return chosen


def drawing_of(
    opacity: float, legend: bool, scheme: Scheme, colors: Sequence[Color | None] | None
) -> dict[Task, Draw]:
    """How each task's results become pictures; arguments as of `build_writers`."""
    style: dict[str, Any] = {"opacity": opacity, "legend": legend, "scheme": scheme}
    own = style | {"colors": colors}
    return {
        "segment": lambda image, found: overlay(image, found, **style),
        "instances": lambda image, found: instance_overlay(image, found, **own),
        "detect": lambda image, found: detection_overlay(image, found, **own),
        "anomaly": lambda image, found: anomaly_overlay(image, found, scale=legend),
        "count": lambda image, found: count_overlay(image, found, **style),
    }


#: Tasks whose results are shapes.
SHAPED: tuple[Task, ...] = ("segment", "instances", "detect")
#: Suffix and function of each file that has no style.
FILES: dict[tuple[str, Task], tuple[str, Save]] = {
    ("labels", "instances"): (".png", label_files.write_ids),
    ("labels", "anomaly"): (".png", label_files.write_mask),
    ("scores", "segment"): (".npz", label_files.write_scores),
    ("scores", "anomaly"): (".npz", label_files.write_heat),
    ("scores", "count"): (".npz", label_files.write_densities),
    ("panoptic", "instances"): (".png", label_files.write_panoptic),
    ("yolo", "detect"): (".txt", lambda stream, found: stream.write(yolo_files.boxes(found).encode())),
    ("yolo", "instances"): (
        ".txt",
        lambda stream, found: stream.write(yolo_files.polygons(found.detections()).encode()),
    ),
    **{
        (name, task): (suffix, write)
        for name, suffix, write in (
            ("labelme", ".json", labelme_files.write),
            ("geojson", ".geojson", geojson_files.write),
        )
        for task in SHAPED
    },
}
#: Folders that are not called like their format.
FOLDERS = {"overlay": "overlays"}


def _named(name: str, task: Task) -> tuple[str, str]:
    """Kind and folder of a format: segmentation has the plain names, and so has what only one task has."""
    suffix = "" if task == "segment" or name == "panoptic" else f"_{task}"
    return name + suffix, FOLDERS.get(name, name) + suffix


def _picture(task: Task, draw: Draw) -> Writer:
    def write(stream: BinaryStream, image: np.ndarray, answers: Answers) -> None:
        draw(image, answers.of(task)).save(stream, "JPEG", quality=92, subsampling=0)

    kind, folder = _named("overlay", task)
    return Writer(kind, folder, ".jpg", write)


def _file(name: str, task: Task, suffix: str, save: Save) -> Writer:
    def write(stream: BinaryStream, image: np.ndarray, answers: Answers) -> None:
        save(stream, answers.of(task))

    kind, folder = _named(name, task)
    return Writer(kind, folder, suffix, write)


def _write_part(stream: BinaryStream, image: np.ndarray, answers: Answers) -> None:
    stream.write(json.dumps(coco_files.annotations_of(answers), ensure_ascii=False).encode())
