"""Counting benchmarks on disk: where the images are, where the dots, how many.

Layouts are those of the published archives:

    FSC147/                              part_A/  (or part_A_final; part_B likewise)
      annotation_FSC147_384.json           train_data/images/IMG_1.jpg
      Train_Test_Val_FSC_147.json          train_data/ground-truth/GT_IMG_1.mat  (or ground_truth)
      ImageClasses_FSC147.txt              test_data/...
      images_384_VarV2/2.jpg

Sources: FSC-147, Ranjan et al., CVPR 2021, arXiv 2104.08391; ShanghaiTech, Zhang et al., CVPR 2016.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from jaxtyping import Float

from ovseg.errors import ConfigError, unknown_name

FSC147_FILES = {
    "annotations": "annotation_FSC147_384.json",
    "splits": "Train_Test_Val_FSC_147.json",
    "classes": "ImageClasses_FSC147.txt",
    "images": "images_384_VarV2",
}
FSC147_LAYOUT = f"FSC-147 needs {', '.join(FSC147_FILES.values())}/"
SHANGHAITECH_LAYOUT = (
    "ShanghaiTech needs part_A/ and part_B/ (or part_A_final ...), each with train_data/ and test_data/, "
    "each with images/IMG_1.jpg ... and ground-truth/GT_IMG_1.mat ... (or ground_truth)"
)


@dataclass(frozen=True)
class CountingImage:
    """An image with its dots.

    Attributes:
        path: of the image.
        points_xy: `(n, 2)` in the image's pixels, one for each object; a few may lie just outside.
        name: what was counted.
        exemplars_xyxy: `(m, 4)` boxes of a few of the objects, where the benchmark has some.
    """

    path: Path
    points_xy: Float[np.ndarray, "n 2"]
    name: str
    exemplars_xyxy: Float[np.ndarray, "m 4"] = field(default_factory=lambda: np.zeros((0, 4), np.float32))

    @property
    def count(self) -> int:
        """How many objects there are."""
        return len(self.points_xy)


def read_fsc147(root: str | os.PathLike[str], split: str = "test") -> list[CountingImage]:
    """FSC-147 in the order of its split file.

    Args:
        root: the folder of `FSC147_LAYOUT`.
        split: "train", "val" or "test".

    Raises:
        ConfigError: a file is missing, broken, or lacks an image; the message says what belongs there.
    """
    root = Path(root)
    files = {what: root / name for what, name in FSC147_FILES.items()}
    for path in files.values():
        if not path.exists():
            raise ConfigError(f"'{root}' has no {path.name}: {FSC147_LAYOUT}")
    splits, annotations = _read_json(files["splits"]), _read_json(files["annotations"])
    if split not in splits:
        raise unknown_name("FSC-147 split", split, splits)
    class_of = {}
    for line in files["classes"].read_text(encoding="utf-8").splitlines():
        file, _, name = line.partition("\t")
        class_of[file.strip()] = name.strip()
    found = []
    for file in splits[split]:
        if not class_of.get(file):
            raise ConfigError(f"{files['classes']}: no class for '{file}': expected a line 'file<tab>class'")
        if file not in annotations:
            raise ConfigError(f"{files['annotations']}: nothing about '{file}', which is in split '{split}'")
        entry = annotations[file]
        try:
            points = _array(entry["points"], 2)
            corners = np.asarray(entry.get("box_examples_coordinates", []), np.float32).reshape(-1, 4, 2)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{files['annotations']}: '{file}' needs \"points\" [[x, y], ...] and, if any, "
                f'"box_examples_coordinates" of four corners each: {error!r}'
            ) from error
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        found.append(CountingImage(_existing(files["images"] / file), points, class_of[file], boxes))
    return found


def read_shanghaitech(
    root: str | os.PathLike[str], part: str = "A", split: str = "test", *, name: str = "person"
) -> list[CountingImage]:
    """A part of ShanghaiTech in the order of the images' numbers.

    Args:
        root: the folder of `SHANGHAITECH_LAYOUT`.
        part: "A" or "B".
        split: "train" or "test".
        name: what the dots are called.

    Raises:
        ConfigError: a folder or file is missing or broken; the message says what belongs there.
    """
    root = Path(root)
    if part not in ("A", "B"):
        raise unknown_name("ShanghaiTech part", part, ("A", "B"))
    if split not in ("train", "test"):
        raise unknown_name("ShanghaiTech split", split, ("train", "test"))
    base = _first(root, (f"part_{part}", f"part_{part}_final")) / f"{split}_data"
    images = sorted(_first(base, ("images",)).glob("*.jpg"), key=lambda path: (len(path.stem), path.stem))
    if not images:
        raise ConfigError(f"'{base / 'images'}' has no .jpg: {SHANGHAITECH_LAYOUT}")
    truths = _first(base, ("ground-truth", "ground_truth"))
    return [CountingImage(path, _read_dots(truths / f"GT_{path.stem}.mat"), name) for path in images]


def _read_dots(path: Path) -> Float[np.ndarray, "n 2"]:
    """The dots of a ShanghaiTech file: a cell `image_info` with a struct of "location" and "number"."""
    if not path.is_file():
        raise ConfigError(f"no annotation '{path}': {SHANGHAITECH_LAYOUT}")
    try:
        stored = scipy.io.loadmat(path)
    except (OSError, ValueError, NotImplementedError, scipy.io.matlab.MatReadError) as error:
        raise ConfigError(f"{path}: cannot be read as a MATLAB file: {error}") from error
    try:
        info = stored["image_info"][0, 0]
        points = _array(info["location"][0, 0], 2)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: expected the cell 'image_info' with a struct that has \"location\" (n, 2), "
            f"it holds {sorted(key for key in stored if not key.startswith('__'))}: {error!r}"
        ) from error
    return points


def _array(values: Any, columns: int) -> Float[np.ndarray, "n columns"]:
    found = np.asarray(values, np.float32)
    if found.size == 0:
        return np.zeros((0, columns), np.float32)
    if found.ndim != 2 or found.shape[1] != columns or not np.isfinite(found).all():
        raise ValueError(f"expected finite numbers (n, {columns}), got shape {found.shape}")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: no valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a JSON object by name, got {type(found).__name__}")
    return found


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"no image '{path}', which is in the annotations: {FSC147_LAYOUT}")
    return path


def _first(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise ConfigError(f"'{folder}' has no folder {' or '.join(names)}: {SHANGHAITECH_LAYOUT}")
