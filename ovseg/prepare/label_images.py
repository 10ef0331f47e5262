"""A look at images with label images beside them, as semantic segmentation keeps them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ovseg.prepare.report import Report

VOID = 255


@dataclass(frozen=True)
class LabelImages:
    """Where images and labels are, and what labels may say. `{split}` stands for the split's word.

    Attributes:
        images, labels: folders.
        highest: the labels are 0 to this, and 255, which is not evaluated.
        image_suffix, label_suffix: what follows a pair's common name.
        listing: a file that names the pairs; without one, the folder's images are the split.
        made_by: what writes the labels from the published ones.
    """

    images: str
    labels: str
    highest: int
    image_suffix: str = ".jpg"
    label_suffix: str = ".png"
    listing: str = ""
    made_by: str = ""

    def look(self, report: Report, word: str, sample: int) -> None:
        """Pairs, split file, and the values of some of the labels.

        Args:
            report: gets what is found.
            word: how the folder calls the split.
            sample: so many pairs are opened, evenly spaced; 0 opens none.
        """
        images, labels, listing = (
            each.replace("{split}", word) for each in (self.images, self.labels, self.listing)
        )
        made_by = f"made by {self.made_by}" if self.made_by else ""
        there = [report.has(f"{images}/"), report.has(f"{labels}/", hint=made_by)]
        if listing:
            there.append(report.has(listing, hint=made_by))
        if not all(there):
            return
        pictures = names_in(report.root / images, self.image_suffix)
        maps = names_in(report.root / labels, self.label_suffix)
        if listing:
            split = (report.root / listing).read_text(encoding="utf-8").split()
            twice = {name for name, times in Counter(split).items() if times > 1}
            report.some(f"names twice in {listing}", twice)
            wanted = set(split)
            report.some(f"images that {listing} names are not in {images}", wanted - pictures)
        else:
            wanted = pictures
            if not pictures:
                report.problems.append(f"{images} has no *{self.image_suffix}")
            report.some(f"label images in {labels} without an image", maps - pictures)
        hint = f" ({made_by})" if made_by else ""
        report.some(f"images without *{self.label_suffix} in {labels}{hint}", wanted - maps)
        report.images(len(wanted & pictures))
        report.count("label images", len(wanted & maps))
        pairs = evenly(wanted & pictures & maps, sample)
        for name in pairs:
            fault = self.fault(
                report.root / images / (name + self.image_suffix),
                report.root / labels / (name + self.label_suffix),
            )
            if fault:
                report.problems.append(fault)
        report.count("pairs opened", len(pairs))

    def fault(self, image: Path, label: Path) -> str | None:
        """What is wrong with a pair."""
        try:
            with Image.open(image) as picture:
                size = picture.size
        except (OSError, SyntaxError, ValueError) as error:
            return f"{image} cannot be read: {error}"
        try:
            with Image.open(label) as stored:
                numbers = np.asarray(stored)
        except (OSError, SyntaxError, ValueError) as error:
            return f"{label} cannot be read: {error}"
        if numbers.ndim != 2 or numbers.dtype != np.uint8:
            return f"{label} must be one byte per pixel, it is {numbers.dtype} {numbers.shape}"
        if numbers.shape != size[::-1]:
            return f"{label} is {numbers.shape[0]}x{numbers.shape[1]}, its image {size[1]}x{size[0]} (HxW)"
        values = np.unique(numbers)
        wrong = values[(values > self.highest) & (values != VOID)]
        if not len(wrong):
            return None
        return f"{label} holds {', '.join(map(str, wrong[:3]))}: expected 0 to {self.highest}, and {VOID}"


def names_in(folder: Path, suffix: str) -> set[str]:
    """Files in a folder and below, as paths from there without the suffix, slashes between."""
    found = set()
    for place, _, files in os.walk(folder, followlinks=True):
        below = Path(place).relative_to(folder).as_posix()
        prefix = "" if below == "." else f"{below}/"
        found |= {
            prefix + file.removesuffix(suffix)
            for file in files
            if file.endswith(suffix) and not file.startswith(".")
        }
    return found


def evenly(names: Collection[str], number: int) -> list[str]:
    """So many of the names, evenly spaced in their order."""
    ordered = sorted(names)
    if len(ordered) <= number:
        return ordered
    return [ordered[place] for place in np.linspace(0, len(ordered) - 1, number).round().astype(int)]
