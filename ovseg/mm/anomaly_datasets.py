"""Anomaly benchmarks as mmengine datasets: MVTec AD, VisA, and what is laid out like them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from PIL import Image

from ovseg.errors import ConfigError, unknown_name
from ovseg.images import SUFFIXES
from ovseg.inputs import natural_key
from ovseg.layouts import VISA_CATEGORIES, shown_layout
from ovseg.mm.registry import DATASETS, TRANSFORMS

GOOD = "good"


class AnomalyDataset(BaseDataset):
    """Images of several categories, good ones and damaged ones with masks; one figure per category.

    Entries have `img_path`, `mask_path` (None for good images), `category`, `defect` ("good" or its kind) and
    `good`, what a model may learn from.

    Args:
        data_root: the folder of the benchmark.
        categories: some of them; None takes all that are there.
        shots: good training images that go along with each image, for models that compare with such: 0 for
            zero-shot, None for all.
        shot_seed: draws them at random; None takes them evenly spaced.
        kwargs: see mmengine's `BaseDataset`.

    Raises:
        ConfigError: the folder is not there or looks otherwise; the message shows the layout.
    """

    METAINFO: ClassVar = {"classes": ("normal", "abnormal")}
    #: All that there are; empty where any folder is one.
    CATEGORIES: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        data_root: str = "",
        categories: Sequence[str] | None = None,
        shots: int | None = 0,
        shot_seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        for each in categories or ():
            if self.CATEGORIES and each not in self.CATEGORIES:
                raise unknown_name("category", each, self.CATEGORIES)
        if shots is not None and shots < 0:
            raise ConfigError(f"shots is a number of good images, 0 for none, None for all; got {shots}")
        self.categories = None if categories is None else tuple(categories)
        self.shots = shots
        self.shot_seed = shot_seed
        super().__init__(data_root=data_root, **kwargs)

    def train_images(self, category: str) -> Sequence[Any]:
        """The good images that a category may be learned from: files, or functions that give pixels."""
        raise NotImplementedError

    def test_images(self, category: str) -> Iterator[dict[str, Any]]:
        """`img_path`, `mask_path`, `defect` of a category's test images."""
        raise NotImplementedError

    def found_categories(self) -> Sequence[str]:
        """Those that are there."""
        return self.CATEGORIES

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry per image, category after category."""
        entries: list[dict[str, Any]] = []
        for category in self.categories or self.found_categories():
            good = chosen(self.train_images(category), self.shots, self.shot_seed) if self.shots != 0 else ()
            shared = {"category": category, "good": good, "seg_fields": [], "reduce_zero_label": False}
            entries += [shared | each for each in self.test_images(category)]
        if not entries:
            raise self.wrong("no test image in it")
        return entries

    def wrong(self, what: str) -> ConfigError:
        """The error for a folder that is not as it should be."""
        return ConfigError(
            f"the dataset is not as expected, in '{self.data_root}': {what}. Say where it is: "
            f"--cfg-options test_dataloader.dataset.data_root=FOLDER"
            f"{shown_layout(type(self).__name__, str(self.data_root))}"
        )


@DATASETS.register_module()
class MVTecADDataset(AnomalyDataset):
    """MVTec AD, or any folder of its layout (other benchmarks, a production line's own images)."""

    def found_categories(self) -> Sequence[str]:
        """All folders with test images."""
        root = Path(self.data_root)
        found = sorted(each.parent.name for each in root.glob("*/test")) if root.is_dir() else []
        if not found:
            raise self.wrong("no such folder" if not root.is_dir() else "no <category>/test in it")
        return found

    def train_images(self, category: str) -> Sequence[str]:
        """All of `train/good`."""
        found = _images(Path(self.data_root, category, "train", GOOD))
        if not found:
            raise self.wrong(f"no image in {category}/train/good")
        return [str(each) for each in found]

    def test_images(self, category: str) -> Iterator[dict[str, Any]]:
        """All of `test`, by defect."""
        folder = Path(self.data_root, category)
        defects = sorted(each.name for each in (folder / "test").glob("*") if each.is_dir())
        if not defects:
            raise self.wrong(f"no {category}/test/<defect> in it")
        for defect in defects:
            for image in _images(folder / "test" / defect):
                mask = None if defect == GOOD else self._mask(folder / "ground_truth" / defect, image)
                yield {"img_path": str(image), "mask_path": mask, "defect": defect}

    def _mask(self, folder: Path, image: Path) -> str:
        for name in (f"{image.stem}_mask.png", f"{image.stem}.png"):
            if (folder / name).is_file():
                return str(folder / name)
        raise self.wrong(f"no mask for {image}: neither {folder}/{image.stem}_mask.png nor {image.stem}.png")


@DATASETS.register_module()
class VisADataset(MVTecADDataset):
    """VisA as it is downloaded, split by `split_csv/1cls.csv`, or converted to the layout of MVTec AD.

    Source: Zou et al., "SPot-the-Difference", ECCV 2022; github.com/amazon-science/spot-diff at f2d8d990:
    columns object, split, label, image, mask; a mask's pixels hold kinds of defects, 0 for none.

    Args:
        split_file: which images are for training and which for test, below `data_root`.
        kwargs: see `AnomalyDataset`.
    """

    CATEGORIES = VISA_CATEGORIES

    def __init__(self, *, split_file: str = "split_csv/1cls.csv", **kwargs: Any) -> None:
        self.split_file = split_file
        self._rows: dict[tuple[str, str], list[dict[str, str]]] | None = None
        super().__init__(**kwargs)

    def found_categories(self) -> Sequence[str]:
        """All of the split file, or of the converted folder."""
        rows = self._table()
        return sorted({category for category, _ in rows}) if rows else super().found_categories()

    def train_images(self, category: str) -> Sequence[str]:
        """Those that the split file says are for training."""
        rows = self._table()
        if not rows:
            return super().train_images(category)
        return [str(Path(self.data_root, row["image"])) for row in rows.get((category, "train"), [])]

    def test_images(self, category: str) -> Iterator[dict[str, Any]]:
        """Those that the split file says are for test."""
        rows = self._table()
        if not rows:
            yield from super().test_images(category)
            return
        for row in rows.get((category, "test"), []):
            image, mask = Path(self.data_root, row["image"]), row["mask"]
            damaged = row["label"] != "normal"
            if not image.is_file() or (damaged and not Path(self.data_root, mask).is_file()):
                raise self.wrong(
                    f"{self.split_file} names {row['image']} and '{mask}', which are not both there"
                )
            yield {
                "img_path": str(image),
                "mask_path": str(Path(self.data_root, mask)) if damaged else None,
                "defect": "bad" if damaged else GOOD,
            }

    def _table(self) -> dict[tuple[str, str], list[dict[str, str]]]:
        """Rows by category and split; empty where there is no split file."""
        if self._rows is None:
            path = Path(self.data_root, self.split_file)
            self._rows = {}
            if path.is_file():
                with path.open(newline="", encoding="utf-8") as lines:
                    for row in csv.DictReader(lines):
                        if not {"object", "split", "label", "image", "mask"} <= row.keys():
                            raise self.wrong(f"{self.split_file} has columns {', '.join(row)}")
                        self._rows.setdefault((row["object"], row["split"]), []).append(row)
        return self._rows


@TRANSFORMS.register_module()
class LoadAnomalyMask(BaseTransform):
    """`gt_seg_map`: 1 where the image is damaged, 0 everywhere in a good one."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """After LoadImageFromFile.

        Raises:
            ConfigError: the mask is of another size.
        """
        image_hw = results["img"].shape[:2]
        mask = np.zeros(image_hw, np.uint8)
        if results["mask_path"] is not None:
            found = np.asarray(read_mask(results["mask_path"]))
            if found.shape != image_hw:
                raise ConfigError(
                    f"{results['mask_path']} is {found.shape[0]}x{found.shape[1]}, its image "
                    f"{image_hw[0]}x{image_hw[1]} (HxW): they must be of the same size"
                )
            mask = found.astype(np.uint8)
        results["gt_seg_map"] = mask
        results["seg_fields"] = ["gt_seg_map"]
        return results


def read_mask(path: str | Path) -> np.ndarray:
    """`(H, W)` bool: what is not 0 in a mask image, whatever its mode."""
    with Image.open(path) as stored:
        pixels = np.asarray(stored)
    return np.asarray(pixels.any(axis=2) if pixels.ndim == 3 else pixels != 0)


def chosen(images: Sequence[Any], shots: int | None, seed: int | None = None) -> tuple[Any, ...]:
    """So many of the images, at random or evenly spaced; all for None.

    Raises:
        ConfigError: there are fewer.
    """
    if shots is None:
        return tuple(images)
    if shots > len(images):
        raise ConfigError(f"{shots} good images were asked for (shots), and there are {len(images)}")
    if seed is None:
        places = np.linspace(0, len(images) - 1, shots).round().astype(int)
    else:
        places = np.sort(np.random.default_rng(seed).choice(len(images), shots, replace=False))
    return tuple(images[place] for place in places)


def _images(folder: Path) -> list[Path]:
    found = [each for each in folder.glob("*") if each.suffix.lower() in SUFFIXES]
    return sorted(found, key=lambda each: natural_key(each.name))
