"""Examples on disk: images of which some or all pixels have a class.

Two layouts. A folder for each class, with a mask beside each image (any value but 0 is the class, the rest
is not known):

    examples/dog/rex.jpg   examples/dog/rex_mask.png
    examples/cat/tom.jpg   examples/cat/tom_mask.png

or label maps, whose numbers are the classes of a vocabulary (255, in 16 bits 65535, is not known):

    examples/images/001.jpg   examples/labels/001.png   examples/classes.txt (or any vocabulary given)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from ovseg.errors import ConfigError, ImageError, VocabularyError
from ovseg.images import read_image
from ovseg.text.class_files import FILE_SUFFIXES, fold, nearest
from ovseg.text.vocabulary import Vocabulary

#: The class of a pixel that has none.
UNKNOWN = -1
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MASK_ENDING = "_mask"
LAYOUTS = (
    "expected either CLASS/NAME.jpg with CLASS/NAME_mask.png for each class, or images/NAME.jpg with "
    "labels/NAME.png and classes.txt (docs/few-shot.md)"
)


@dataclass(frozen=True)
class Example:
    """An image on disk with its labels.

    Attributes:
        image: the file.
        labels: the file of its mask or label map.
        index: the class that a mask is of; None for a label map.
        num_classes: of the vocabulary.
    """

    image: Path
    labels: Path
    index: int | None
    num_classes: int

    def read(self) -> tuple[UInt8[np.ndarray, "H W 3"], Int[np.ndarray, "H W"]]:
        """RGB, and the class of each pixel or `UNKNOWN`.

        Raises:
            ImageError: a file cannot be read, or the two are not of one size.
            VocabularyError: a label map has a number that is no class.
        """
        image = read_image(self.image)
        try:
            with Image.open(self.labels) as opened:
                found: np.ndarray = np.asarray(opened)
        except OSError as error:
            raise ImageError(f"{self.labels} cannot be read as an image: {error}") from error
        if found.ndim == 3 and self.index is not None:
            found = np.asarray(found[..., :3].any(axis=-1))
        if found.ndim != 2:
            raise ImageError(
                f"{self.labels} has {found.shape[-1]} channels: a label map has one, a class number in each "
                f"pixel (8 or 16 bits, or a palette)"
            )
        if found.shape != image.shape[:2]:
            raise ImageError(
                f"{self.labels} is {found.shape[0]}x{found.shape[1]} (HxW) and {self.image.name} "
                f"{image.shape[0]}x{image.shape[1]}: masks are drawn at the image's own size, upright"
            )
        if self.index is not None:
            return image, np.where(found != 0, self.index, UNKNOWN)
        void = 65535 if found.dtype.itemsize > 1 else 255
        labels = np.where(found == void, UNKNOWN, found.astype(np.int64))
        if labels.max() >= self.num_classes:
            raise VocabularyError(
                f"{self.labels} has label {labels.max()} and the vocabulary {self.num_classes} classes, "
                f"0..{self.num_classes - 1}: give the vocabulary that the labels are numbers of (--classes)"
            )
        return image, labels


def find_examples(folder: Path, classes: Vocabulary | None = None) -> tuple[Vocabulary, list[Example]]:
    """The examples in a folder, and the vocabulary that they are of.

    Args:
        folder: in one of the two layouts.
        classes: the vocabulary; else the names of the folders, or `classes.txt` (`.yaml`, `.json`).

    Raises:
        ConfigError: no such folder, or nothing of either layout in it.
        VocabularyError: a folder is no class of the vocabulary, or nobody names the classes.
    """
    if not folder.is_dir():
        raise ConfigError(f"no such folder of examples: {folder}; {LAYOUTS}")
    if (folder / "labels").is_dir() and (folder / "images").is_dir():
        return _label_maps(folder, classes)
    names = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not names:
        raise ConfigError(f"{folder} holds no folders; {LAYOUTS}")
    vocabulary = classes or Vocabulary.parse(names)
    index = {fold(name): number for number, name in enumerate(vocabulary.names)}
    found = []
    for name in names:
        if fold(name) not in index:
            raise VocabularyError(
                f"{folder / name}: '{name}' is not a class of the vocabulary."
                f"{nearest(name, list(vocabulary.names))} A folder has the name of its class"
            )
        images = [each for each in _images(folder / name) if not each.stem.endswith(MASK_ENDING)]
        if not images:
            raise ConfigError(f"{folder / name} holds no images; {LAYOUTS}")
        number = index[fold(name)]
        found += [
            Example(each, _beside(each, folder / name, each.stem + MASK_ENDING), number, len(vocabulary))
            for each in images
        ]
    return vocabulary, found


def _label_maps(folder: Path, classes: Vocabulary | None) -> tuple[Vocabulary, list[Example]]:
    lists = [
        folder / f"classes{suffix}" for suffix in FILE_SUFFIXES if (folder / f"classes{suffix}").exists()
    ]
    if classes is None and not lists:
        raise VocabularyError(
            f"{folder}: nobody says what the numbers of the label maps mean: give --classes, or write a "
            f"class a line into {folder / 'classes.txt'}, the first for label 0"
        )
    vocabulary = classes or Vocabulary.parse(lists[0])
    images = _images(folder / "images")
    if not images:
        raise ConfigError(f"{folder / 'images'} holds no images; {LAYOUTS}")
    found = [
        Example(each, _beside(each, folder / "labels", each.stem), None, len(vocabulary)) for each in images
    ]
    return vocabulary, found


def _images(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.suffix.lower() in IMAGE_SUFFIXES)


def _beside(image: Path, folder: Path, stem: str) -> Path:
    path = folder / f"{stem}.png"
    if not path.is_file():
        raise ConfigError(
            f"{image} has no {'mask' if folder == image.parent else 'label map'}: expected {path}"
        )
    return path
