"""Region maps: an id for every pixel of an image, 0 where no region was found.

They come from files that any segmenter has written, or from SAM's automatic masks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from ovseg.errors import ConfigError, ImageError, ShapeError
from ovseg.structures import Pictures

#: The id of pixels that belong to no region.
UNSEGMENTED = 0
SUFFIXES = (".png", ".npy", ".npz")

#: What CorrCLIP asks of SAM's mask generator: few points and nearly no filter, to leave little uncovered.
SAM_OPTIONS: Mapping[str, Any] = {
    "points_per_side": 8,
    "pred_iou_thresh": 0.4,
    "stability_score_thresh": 0.4,
}


def paint_regions(masks: Sequence[Mapping[str, Any]], image_hw: tuple[int, int]) -> Int[np.ndarray, "H W"]:
    """Overlapping masks as one map, painted from the smallest to the largest: the larger covers the smaller.

    Args:
        masks: with "segmentation" `(H, W)` bool and "area" in pixels, as SAM's mask generator gives them.
        image_hw: size of the map.

    Raises:
        ShapeError: a mask has another size.
    """
    regions = np.full(image_hw, UNSEGMENTED, np.int32)
    for index, mask in enumerate(sorted(masks, key=lambda mask: mask["area"]), start=1):
        covered = np.asarray(mask["segmentation"], dtype=bool)
        if covered.shape != tuple(image_hw):
            raise ShapeError(
                f"a mask is {'x'.join(map(str, covered.shape))} (HxW) and its image "
                f"{image_hw[0]}x{image_hw[1]}"
            )
        regions[covered] = index
    return regions


def sam_regions(
    sam: Any, image: UInt8[np.ndarray, "H W 3"], options: Mapping[str, Any] = SAM_OPTIONS
) -> Int[np.ndarray, "H W"]:
    """The regions that SAM finds by itself.

    Args:
        sam: an `ovseg.encoders.sam.SamEncoder`.
        image: RGB at its own size.
        options: of SAM's automatic mask generator.
    """
    return paint_regions(sam.automatic_masks(image, **options), (image.shape[0], image.shape[1]))


def regions_of(
    pictures: Pictures | None, sam: Any = None, options: Mapping[str, Any] = SAM_OPTIONS
) -> tuple[Int[np.ndarray, "H W"], ...]:
    """The region maps that came with the images; where none did, SAM's.

    Args:
        pictures: the images.
        sam: an `ovseg.encoders.sam.SamEncoder`, or None.
        options: of its automatic mask generator.

    Raises:
        ConfigError: there are neither regions nor SAM.
        ShapeError: a region map is not of its image's size.
    """
    if pictures is None:
        raise ConfigError("these features came without their pictures, which say where regions are")
    if not pictures.regions:
        if sam is None:
            raise ConfigError(
                "no region says which pixels belong together: give region maps with the images, or a SAM "
                "encoder that finds them"
            )
        return tuple(sam_regions(sam, image, options) for image in pictures.full)
    for regions, image in zip(pictures.regions, pictures.originals, strict=False):
        check_regions(regions, image.shape[:2])
    return pictures.regions


def check_regions(regions: Int[np.ndarray, "H W"], image_hw: tuple[int, int], name: str = "") -> None:
    """Raises ShapeError unless the map has the image's size; it starts with `name`, where there is one."""
    if regions.shape != tuple(image_hw):
        what = f"{name}: " if name else ""
        raise ShapeError(
            f"{what}the region map is {regions.shape[0]}x{regions.shape[1]} (HxW) and its image "
            f"{image_hw[0]}x{image_hw[1]}: make regions at the image's own size, upright"
        )


def resize_regions(regions: Int[Tensor, "*lead H W"], size_hw: tuple[int, int]) -> Int[Tensor, "*lead h w"]:
    """Nearest neighbour, torch's `interpolate(mode="nearest")`, for ids of any magnitude."""
    rows, cols = (
        _nearest(old, new, regions.device) for old, new in zip(regions.shape[-2:], size_hw, strict=True)
    )
    return regions[..., rows[:, None], cols]


def _nearest(old: int, new: int, device: torch.device) -> Int[Tensor, " new"]:
    positions = torch.arange(old, dtype=torch.float32, device=device)  # exact up to 2^24
    return F.interpolate(positions[None, None], size=new, mode="nearest")[0, 0].long()


def read_regions(path: str | os.PathLike[str]) -> Int[np.ndarray, "H W"]:
    """A region map from a file.

    Args:
        path: a grey or palette PNG of 8 or 16 bit, whose values (palette indices) are the ids, or a `.npy`
            or `.npz` with one array of integers.

    Raises:
        ImageError: the file cannot be read, or holds no map of ids that are 0 or more.
    """
    path = Path(path)
    try:
        values = _read_values(path)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such region file") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read as a region map: {error}") from error
    if values.ndim != 2 or values.dtype.kind not in "biu":
        raise ImageError(
            f"{path}: a region map is one integer per pixel, this is {values.dtype} of shape {values.shape}"
        )
    if values.size and not 0 <= values.min() <= values.max() < 2**31:
        raise ImageError(f"{path}: region ids are 0 .. 2147483647, got {values.min()} .. {values.max()}")
    return values.astype(np.int32)


def _read_values(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            if len(stored.files) != 1:
                raise ValueError(f"it has the arrays {', '.join(stored.files)}, one is expected")
            return stored[stored.files[0]]
    with Image.open(path) as image:
        return np.asarray(image)


class RegionFolder:
    """Region files of a folder, found by the image's name without its suffix.

    Args:
        folder: with one `.png`, `.npy` or `.npz` for each image: `dog.png` for `photos/dog.jpg`.

    Raises:
        ConfigError: no such folder.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ConfigError(f"region folder '{folder}' does not exist, or is no folder")

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        files: dict[str, list[Path]] = {}
        for path in sorted(self.folder.iterdir()):
            if path.suffix.lower() in SUFFIXES:
                files.setdefault(path.stem, []).append(path)
        return files

    def __call__(self, image: str | os.PathLike[str], image_hw: tuple[int, int]) -> Int[np.ndarray, "H W"]:
        """The region map of an image.

        Args:
            image: the image's path, of which only the stem is read.
            image_hw: its size.

        Raises:
            ImageError: there is no file, more than one, or one that cannot be read.
            ShapeError: the map has another size than the image.
        """
        stem = Path(image).stem
        found = self._files.get(stem, [])
        if not found:
            raise ImageError(
                f"{image}: no regions in '{self.folder}': expected {stem} with one of {', '.join(SUFFIXES)}"
            )
        if len(found) > 1:
            raise ImageError(
                f"{image}: {len(found)} region files fit, {', '.join(path.name for path in found)}: keep one"
            )
        regions = read_regions(found[0])
        check_regions(regions, image_hw, str(found[0]))
        return regions


def region_ids(ids: Any, image: UInt8[np.ndarray, "H W 3"]) -> Int[np.ndarray, "H W"]:
    """The region map of an image: given as one, or as its file.

    Raises:
        ConfigError: there is none, or it is no map of integers.
        ImageError: the file cannot be read.
        ShapeError: it has another size than the image.
    """
    if ids is None:
        raise ConfigError("there are fewer region maps than images: give one for each")
    found = read_regions(ids) if isinstance(ids, str | os.PathLike) else np.asarray(ids)
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.integer):
        raise ConfigError(
            f"a region map is (H, W) of integers, or the path of one, got {found.dtype} {found.shape}"
        )
    check_regions(found, image.shape[:2])
    return found.astype(np.int32)
