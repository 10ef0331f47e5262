"""The files of a whole run: what labels mean, COCO's and YOLO's own, the report, paths in labelme's files."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from io import TextIOWrapper
from pathlib import PurePosixPath

from ovseg.answers import Task
from ovseg.batch import Writer
from ovseg.geo import read_georeference
from ovseg.inputs import ImageFile
from ovseg.outputs import coco_files, geojson_files, labelme_files, yolo_files
from ovseg.outputs.palette import Color, Scheme, class_colors
from ovseg.outputs.report import REPORT, write_report
from ovseg.outputs.writers import check_formats
from ovseg.record_file import atomic
from ovseg.results import void_label
from ovseg.run_folder import CLASSES, RunFolder
from ovseg.text.kinds import things_of
from ovseg.text.vocabulary import Vocabulary


def class_table(
    names: Sequence[str],
    void: int,
    background: Collection[int] = (),
    given: Sequence[Color | None] | None = None,
    scheme: Scheme = "vivid",
) -> bytes:
    """The content of `classes.json`: what the labels of a run mean."""
    colors = class_colors(names, background, given, scheme)
    classes = [
        {"id": index, "name": name, "color": list(colors[index]), "background": index in background}
        for index, name in enumerate(names)
    ]
    return json.dumps({"void": void, "classes": classes}, indent=2, ensure_ascii=False).encode() + b"\n"


def write_class_files(
    folder: RunFolder, vocabulary: Vocabulary, writers: Sequence[Writer], scheme: Scheme = "vivid"
) -> None:
    """`classes.json`, and the `.yaml` that YOLO's tools read beside each folder of theirs."""
    names, void = vocabulary.names, void_label(len(vocabulary.names))
    folder.write(CLASSES, class_table(names, void, vocabulary.background, vocabulary.colors, scheme))
    for writer in writers:
        if writer.kind.startswith("yolo"):
            folder.write(f"{writer.folder}.yaml", yolo_files.data_file(names, writer.folder).encode())


def write_run_files(
    folder: RunFolder,
    images: Sequence[ImageFile],
    vocabulary: Vocabulary,
    tasks: Sequence[Task],
    formats: Sequence[str],
    scheme: Scheme = "vivid",
) -> list[str]:
    """COCO's files of a run, joined from the files of its images, and its report.

    Files of labelme get the paths of their images, and GeoJSON of georeferenced rasters their coordinates.

    Args:
        folder: of the run, opened.
        images: in the order that they shall have.
        vocabulary: the classes.
        tasks: what was asked.
        formats: what was to be written.
        scheme: of the colours.

    Returns:
        Names of the files, below the run's folder.
    """
    chosen = check_formats(formats)
    for image in images:
        _finish(folder, image)
    files = _join_coco(folder, images, vocabulary, tasks, chosen)
    if "html" in chosen:
        write_report(folder, images, vocabulary, scheme)
        files.append(REPORT)
    return files


def _finish(folder: RunFolder, image: ImageFile) -> None:
    """What the files of an image need to know about where it lies."""
    record = folder.records.get(image.name, {})
    for kind, name in record.get("outputs", {}).items():
        path = folder.path / name
        if kind.partition("_")[0] == "labelme":
            old = path.read_bytes()
            new = labelme_files.add_image(old, path, image.path)
        elif kind.partition("_")[0] == "geojson" and "raster" not in record:
            place = read_georeference(image.path)
            if place is None:
                continue
            old = path.read_bytes()
            new = geojson_files.georeferenced(old, place.to_map, place.crs_member())
        else:
            continue
        if new != old:
            folder.write(name, new)


def _join_coco(
    folder: RunFolder,
    images: Sequence[ImageFile],
    vocabulary: Vocabulary,
    tasks: Sequence[Task],
    chosen: Collection[str],
) -> list[str]:
    wanted: list[str] = [task for task in tasks if task in coco_files.FILES and "coco" in chosen]
    if "panoptic" in chosen and "instances" in tasks:
        wanted.append("panoptic")
    if not wanted:
        return []
    classes = coco_files.categories(vocabulary.names, things_of(vocabulary))
    for task in wanted:
        with atomic(folder.path / coco_files.FILES[task]) as stream:
            text = TextIOWrapper(stream, encoding="utf-8")
            coco_files.join(text, task, list(_parts(folder, images)), classes)
            text.flush()
            text.detach()
    return [coco_files.FILES[task] for task in wanted]


def _parts(folder: RunFolder, images: Sequence[ImageFile]) -> Iterator[tuple[str, coco_files.Part]]:
    for image in images:
        outputs = folder.records.get(image.name, {}).get("outputs", {})
        if "coco" in outputs:
            part = coco_files.read_part(folder.path / outputs["coco"])
            part["file_name"] = PurePosixPath(outputs.get("panoptic", "")).name
            yield image.name, part
