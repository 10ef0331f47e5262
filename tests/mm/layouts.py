"""Datasets of three images on disk, in the layout that each config expects.

Every image tells its own labels: the red channel is the class that a perfect model predicts. Files called
.jpg hold PNG data, which loaders recognise by content, so that nothing is lost to compression.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((37, 53), (48, 31), (40, 40))


class Layout:
    """Where a dataset keeps images and labels, and how its labels number the classes.

    Args:
        root: folder below `data/`.
        image, label: paths with `{}` for the image's name.
        names: of the three images.
        listing: file that lists the names.
        first: the file's number of the first class (1 where 0 is left out).
        unlabelled: what the file says where there is no label.
        raw: from class to the file's number, where it is no shift.
    """

    def __init__(
        self,
        root: str,
        image: str,
        label: str,
        *,
        names: tuple[str, str, str] = ("a", "b", "c"),
        listing: str = "",
        first: int = 0,
        unlabelled: int = 255,
    ) -> None:
        self.root, self.image, self.label = root, image, label
        self.names, self.listing, self.first, self.unlabelled = names, listing, first, unlabelled

    def write(self, data: Path, num_classes: int) -> None:
        """Three images that together show the first, the last, other classes and unlabelled pixels."""
        root = data / self.root
        for number, (name, hw) in enumerate(zip(self.names, SIZES, strict=True)):
            rng = np.random.default_rng(number)
            classes = rng.choice([0, num_classes - 1, num_classes // 2, number + 1], size=(4, 4)).astype(
                np.uint8
            )
            labels = np.kron(classes, np.ones((12, 14), np.uint8))[: hw[0], : hw[1]]
            image = np.stack([labels, 255 - labels, np.full_like(labels, 7)], axis=-1)
            stored = (labels + self.first).astype(np.uint8)
            stored[:3] = self.unlabelled
            _save(image, root / self.image.format(name))
            _save(stored, root / self.label.format(name))
        if self.listing:
            (root / self.listing).parent.mkdir(parents=True, exist_ok=True)
            (root / self.listing).write_text("".join(f"{name}\n" for name in self.names))


def _save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, format="PNG")


VOC_LIST = "ImageSets/Segmentation/val.txt"
CONTEXT_LIST = "ImageSets/SegmentationContext/val.txt"
CITY = ("frankfurt/frankfurt_000000_000294", "lindau/lindau_000001_000019", "munster/munster_000002_000019")

LAYOUTS = {
    "voc21": Layout("VOCdevkit/VOC2012", "JPEGImages/{}.jpg", "SegmentationClass/{}.png", listing=VOC_LIST),
    "voc20": Layout(
        "VOCdevkit/VOC2012",
        "JPEGImages/{}.jpg",
        "SegmentationClass/{}.png",
        listing=VOC_LIST,
        first=1,
        unlabelled=0,
    ),
    "context60": Layout(
        "VOCdevkit/VOC2010", "JPEGImages/{}.jpg", "SegmentationClassContext/{}.png", listing=CONTEXT_LIST
    ),
    "context59": Layout(
        "VOCdevkit/VOC2010",
        "JPEGImages/{}.jpg",
        "SegmentationClassContext/{}.png",
        listing=CONTEXT_LIST,
        first=1,
        unlabelled=0,
    ),
    "coco_object": Layout(
        "coco_object", "images/val2017/{}.jpg", "annotations/val2017/{}_instanceTrainIds.png"
    ),
    "coco_stuff164k": Layout(
        "coco_stuff164k", "images/val2017/{}.jpg", "annotations/val2017/{}_labelTrainIds.png"
    ),
    "cityscapes": Layout(
        "cityscapes",
        "leftImg8bit/val/{}_leftImg8bit.png",
        "gtFine/val/{}_gtFine_labelTrainIds.png",
        names=CITY,
    ),
    "ade20k": Layout(
        "ade/ADEChallengeData2016",
        "images/validation/{}.jpg",
        "annotations/validation/{}.png",
        first=1,
        unlabelled=0,
    ),
}
