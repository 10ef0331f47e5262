"""A look at annotation files in COCO's form, with the images that they name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ovseg.errors import ConfigError
from ovseg.prepare.label_images import evenly
from ovseg.prepare.report import Report
from ovseg.text.class_files import fold, load_shipped


@dataclass(frozen=True)
class InstanceFile:
    """Where the annotations and images are. `{split}` stands for the split's word.

    Attributes:
        annotations: the file.
        vocabulary: the shipped list whose classes the file must have.
        images: folder; empty where the file names each image's folder, as LVIS does.
        with_objects: only images with an object of these classes count.
    """

    annotations: str
    vocabulary: str
    images: str = ""
    with_objects: bool = False

    def look(self, report: Report, word: str, sample: int) -> None:
        """The file's parts, its classes, the images that it names, and the sizes of some."""
        path = self.annotations.replace("{split}", word)
        folder = self.images.replace("{split}", word)
        there = [report.has(path), not folder or report.has(f"{folder}/")]
        if not there[0]:
            return
        try:
            told = read_instances(report.root / path)
        except ConfigError as error:
            report.problems.append(str(error))
            return
        numbers = classes_of(told["categories"], class_names(self.vocabulary))
        missing = [name for name, number in numbers.items() if number is None]
        report.some(f"classes are not in {path}", missing)
        images = {each["id"]: each for each in told["images"]}
        kept, foreign, known = set(), 0, set(numbers.values())
        for each in told["annotations"]:
            foreign += each["image_id"] not in images
            if each["category_id"] in known:
                kept.add(each["image_id"])
        if foreign:
            report.problems.append(f"{foreign:,} annotations in {path} are of images that it does not list")
        if not all(there):
            return
        if self.with_objects:
            images = {number: each for number, each in images.items() if number in kept}
        files = {(f"{folder}/" if folder else "") + file_name(each): each for each in images.values()}
        absent = set(files) - existing(report.root, files)
        report.some(f"images that {path} names are missing", absent)
        report.images(len(files) - len(absent))
        report.count("annotated objects", len(told["annotations"]))
        chosen = evenly(files.keys() - absent, sample)
        for name in chosen:
            fault = size_fault(report.root / name, files[name])
            if fault:
                report.problems.append(fault)
        report.count("images opened", len(chosen))


def read_instances(path: Path) -> dict[str, Any]:
    """An annotation file in COCO's form.

    Raises:
        ConfigError: it cannot be read, or is of another form.
    """
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no valid JSON: {error}") from error
    parts = {
        "images": ("id",),
        "annotations": ("image_id", "category_id"),
        "categories": ("id", "name"),
    }
    for part, keys in parts.items():
        entries = told.get(part) if isinstance(told, dict) else None
        if not isinstance(entries, list) or not all(
            isinstance(each, dict) and all(key in each for key in keys) for each in entries
        ):
            raise ConfigError(f"{path}: expected '{part}', a list of objects with {', '.join(keys)}")
    return told


def class_names(vocabulary: str) -> list[str]:
    """Names of a shipped list."""
    return [str(each["name"]) for each in load_shipped(vocabulary).classes]


def classes_of(categories: Iterable[Mapping[str, Any]], names: Iterable[str]) -> dict[str, int | None]:
    """The file's number of each class, None for what it lacks; spaces and underscores are the same."""
    numbers = {_key(each["name"]): each["id"] for each in categories}
    return {name: numbers.get(_key(name)) for name in names}


def file_name(image: Mapping[str, Any]) -> str:
    """An image's file; LVIS says it by its address, of which folder and name count."""
    return image.get("file_name") or "/".join(image.get("coco_url", "").split("/")[-2:])


def existing(root: Path, files: Iterable[str]) -> set[str]:
    """Those of the files that are there; folders are listed, which is faster than asking for each."""
    wanted = set(files)
    folders = {name.rpartition("/")[0] for name in wanted}
    found = set()
    for folder in folders:
        if (root / folder).is_dir():
            with os.scandir(root / folder) as entries:
                found |= {f"{folder}/{each.name}" if folder else each.name for each in entries}
    return wanted & found


def size_fault(path: Path, image: Mapping[str, Any]) -> str | None:
    """What is wrong with an image file."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
    except (OSError, SyntaxError, ValueError) as error:
        return f"{path} cannot be read: {error}"
    said = image.get("height", height), image.get("width", width)
    if said != (height, width):
        return f"{path} is {height}x{width}, the annotations say {said[0]}x{said[1]} (HxW)"
    return None


def _key(name: str) -> str:
    return fold(name.replace("_", " "))
