"""A look at the folders of anomaly and counting benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ovseg.counting_data import FSC147_FILES, read_fsc147, read_shanghaitech
from ovseg.errors import ConfigError
from ovseg.images import SUFFIXES
from ovseg.prepare.label_images import evenly
from ovseg.prepare.report import Report
from ovseg.prepare.visa import read_split

GOOD = "good"


@dataclass(frozen=True)
class DefectFolders:
    """A folder for each category, as MVTec AD has them; VisA has a split file instead, until it is converted.

    Attributes:
        categories: all that the benchmark has.
        split_file: names images and masks, where it is there.
    """

    categories: Sequence[str]
    split_file: str = ""

    def look(self, report: Report, word: str, sample: int) -> None:
        """Categories, masks of damaged images, and the sizes of some masks."""
        if self.split_file and (report.root / self.split_file).is_file():
            images, masks, found = self._listed(report, word)
        else:
            images, masks, found = self._folders(report, word)
        lacking = {each for each in self.categories if each not in found}
        if report.subset and found:
            lacking = set()
        report.some(f"categories have no images for {word}", lacking)
        report.images(images)
        if word == "test":
            report.count("masks", len(masks))
        chosen = evenly(masks, sample)
        for mask in chosen:
            fault = mask_fault(report.root / masks[mask], report.root / mask)
            if fault:
                report.problems.append(fault)
        report.count("masks opened", len(chosen))

    def _listed(self, report: Report, word: str) -> tuple[int, dict[str, str], set[str]]:
        try:
            rows = [row for row in read_split(report.root / self.split_file) if row.split == word]
        except ConfigError as error:
            report.problems.append(str(error))
            return 0, {}, set()
        there = {row.image for row in rows if (report.root / row.image).is_file()}
        report.some(f"images that {self.split_file} names are missing", {row.image for row in rows} - there)
        masks = {row.mask: row.image for row in rows if row.damaged and row.mask}
        bare = {row.image for row in rows if row.damaged and not row.mask}
        report.some("damaged images have no mask", bare)
        absent = {mask for mask in masks if not (report.root / mask).is_file()}
        report.some(f"masks that {self.split_file} names are missing", absent)
        pairs = {mask: image for mask, image in masks.items() if mask not in absent and image in there}
        return len(there), pairs, {row.category for row in rows}

    def _folders(self, report: Report, word: str) -> tuple[int, dict[str, str], set[str]]:
        root, count, found = report.root, 0, set()
        masks: dict[str, str] = {}
        bare, spare = set(), set()
        for folder in sorted(each for each in root.iterdir() if (each / word).is_dir()):
            for image in sorted(folder.glob(f"{word}/*/*")):
                if image.suffix.lower() not in SUFFIXES:
                    continue
                count += 1
                found.add(folder.name)
                if image.parent.name == GOOD:
                    continue
                truth = folder / "ground_truth" / image.parent.name
                names = [truth / f"{image.stem}{suffix}.png" for suffix in ("_mask", "")]
                mask = next((each for each in names if each.is_file()), None)
                if mask is None:
                    bare.add(image.relative_to(root).as_posix())
                else:
                    masks[mask.relative_to(root).as_posix()] = image.relative_to(root).as_posix()
            if word == "test":
                spare |= {each.relative_to(root).as_posix() for each in folder.glob("ground_truth/*/*.png")}
        report.some("damaged images have no mask (NAME_mask.png or NAME.png)", bare)
        report.some("masks have no image", spare - masks.keys())
        return count, masks, found


def mask_fault(image: Path, mask: Path) -> str | None:
    """What is wrong with the mask of a damaged image."""
    try:
        with Image.open(image) as picture, Image.open(mask) as stored:
            size, numbers = picture.size, np.asarray(stored)
    except (OSError, SyntaxError, ValueError) as error:
        return f"{mask} or its image cannot be read: {error}"
    if numbers.shape[:2] != size[::-1]:
        return f"{mask} is {numbers.shape[0]}x{numbers.shape[1]}, its image {size[1]}x{size[0]} (HxW)"
    return None


def look_at_fsc147(report: Report, word: str, sample: int) -> None:
    """FSC-147's files, and all images and annotations of the split."""
    there = [report.has(name + ("/" if what == "images" else "")) for what, name in FSC147_FILES.items()]
    if not all(there):
        return
    root = report.root
    try:
        names = json.loads((root / FSC147_FILES["splits"]).read_text(encoding="utf-8"))[word]
    except (OSError, ValueError, KeyError, TypeError) as error:
        report.problems.append(f"{FSC147_FILES['splits']}: no list '{word}' in it: {error!r}")
        return
    present = {each.name for each in (root / FSC147_FILES["images"]).iterdir()}
    absent = set(names) - present
    report.some(f"images that {FSC147_FILES['splits']} names are missing", absent)
    report.images(len(names) - len(absent))
    if absent:
        return
    try:
        found = read_fsc147(root, word)
    except ConfigError as error:
        report.problems.append(str(error))
        return
    report.count("dots", sum(each.count for each in found))
    _open_some([each.path for each in found], report, sample)


@dataclass(frozen=True)
class CrowdFolders:
    """A part of ShanghaiTech."""

    part: str

    def look(self, report: Report, word: str, sample: int) -> None:
        """Images with their annotation files, all of which are read."""
        options = [f"part_{self.part}", f"part_{self.part}_final"]
        base = next((each for each in options if (report.root / each).is_dir()), options[0])
        truth = f"{base}/{word}_data/ground"
        joint = "_" if (report.root / f"{truth}_truth").is_dir() else "-"
        if not all([report.has(f"{base}/{word}_data/images/"), report.has(f"{truth}{joint}truth/")]):
            return
        data = report.root / base / f"{word}_data"
        images = {each.stem for each in (data / "images").glob("*.jpg")}
        truths = {each.stem.removeprefix("GT_") for each in (data / f"ground{joint}truth").glob("GT_*.mat")}
        report.some("images have no GT_NAME.mat", images - truths)
        report.some("annotation files GT_NAME.mat have no image", truths - images)
        report.images(len(images))
        if images - truths:
            return
        try:
            found = read_shanghaitech(report.root, self.part, word)
        except ConfigError as error:
            report.problems.append(str(error))
            return
        report.count("dots", sum(each.count for each in found))
        _open_some([each.path for each in found], report, sample)


def look_at_images(report: Report, word: str, sample: int) -> None:
    """A folder of images, however deep."""
    if not report.has(f"{word}/"):
        return
    found = [each for each in (report.root / word).rglob("*") if each.suffix.lower() in SUFFIXES]
    if not found:
        report.problems.append(f"no image in {word}/ or below")
    report.images(len(found))
    _open_some(found, report, sample)


def _open_some(paths: Sequence[Path], report: Report, sample: int) -> None:
    chosen = evenly([str(each) for each in paths], sample)
    for path in chosen:
        try:
            with Image.open(path) as picture:
                picture.verify()
        except (OSError, SyntaxError, ValueError) as error:
            report.problems.append(f"{path} cannot be read: {error}")
    report.count("images opened", len(chosen))
