"""Counting benchmarks and scenes under mmengine: images with a name and dots.

A pipeline loads the image and packs it: `LoadImageFromFile` (or `RenderCountedScene`), for training
`CountCrop`, then `PackCounts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement

from ovseg.counting_data import CountingImage, read_fsc147, read_shanghaitech
from ovseg.errors import ConfigError
from ovseg.mm.registry import DATASETS, TRANSFORMS
from ovseg.mm.scenes_dataset import entries, put_image
from ovseg.scenes import SceneSet
from ovseg.scenes.plan import SPLIT_SETTINGS
from ovseg.training.count_augment import CountAugmentation


class _CountingDataset(BaseDataset):
    """What the benchmarks share; a subclass reads its files."""

    METAINFO: ClassVar[dict[str, Any]] = {"classes": ()}

    def __init__(self, *, split: str = "test", **kwargs: Any) -> None:
        self.split = split
        if not kwargs.get("data_root"):
            raise ConfigError(f"{type(self).__name__} needs data_root, the folder of its files")
        super().__init__(**{"data_prefix": {}, **kwargs})

    def read(self) -> Sequence[CountingImage]:
        """The images of the split."""
        raise NotImplementedError

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry per image.

        Raises:
            ConfigError: files are missing or broken; the message says which folder was expected and shows it.
        """
        return [
            {"img_path": str(each.path), "points_xy": each.points_xy, "name": each.name}
            for each in self.read()
        ]


@DATASETS.register_module()
class FSC147Dataset(_CountingDataset):
    """FSC-147: each image has its own class, whose name is asked.

    Args:
        split: "train", "val" or "test".
        kwargs: of `BaseDataset`; `data_root` is the folder of `ovseg.counting_data.FSC147_LAYOUT`.
    """

    def read(self) -> Sequence[CountingImage]:
        """In the order of the split file."""
        return read_fsc147(self.data_root, self.split)


@DATASETS.register_module()
class ShanghaiTechDataset(_CountingDataset):
    """A part of ShanghaiTech.

    Args:
        part: "A" or "B".
        split: "train" or "test".
        name: what the dots are called.
        kwargs: of `BaseDataset`; `data_root` is the folder of `ovseg.counting_data.SHANGHAITECH_LAYOUT`.
    """

    def __init__(self, *, part: str = "A", name: str = "person", **kwargs: Any) -> None:
        self.part, self.name = part, name
        super().__init__(**kwargs)

    def read(self) -> Sequence[CountingImage]:
        """In the order of the images' numbers."""
        return read_shanghaitech(self.data_root, self.part, self.split, name=self.name)


@lru_cache(maxsize=8)
def _scenes(split: str, seed: int, length: int, size_hw: tuple[int, int]) -> SceneSet:
    return SceneSet(split, seed, length=length, size_hw=size_hw, settings=SPLIT_SETTINGS["counting"])


@DATASETS.register_module()
class ScenesCountingDataset(BaseDataset):
    """Scenes with many of one kind, drawn when the pipeline asks for them.

    Args:
        split: whose words: "train" to learn, "val" to tune, "counting" to report.
        seed, length, size_hw: see `ovseg.scenes.SceneSet`.
        everything: a word under which all objects are counted; None counts the scene's most frequent kind,
            under its own name.
        kwargs: of `BaseDataset`.
    """

    METAINFO: ClassVar[dict[str, Any]] = {"classes": ()}

    def __init__(
        self,
        *,
        split: str = "counting",
        seed: int = 0,
        length: int = 64,
        size_hw: Sequence[int] = (224, 288),
        everything: str | None = None,
        **kwargs: Any,
    ) -> None:
        height, width = size_hw
        self.scene: dict[str, Any] = {
            "split": split,
            "seed": seed,
            "length": length,
            "size_hw": (height, width),
        }
        self.everything = everything
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry per scene."""
        return entries(self.scene, "counting", everything=self.everything)


@TRANSFORMS.register_module()
class RenderCountedScene(BaseTransform):
    """Draws the scene: `img` (BGR, as loaders give it), `name`, and `points_xy`, the middles of the boxes."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """In the place of LoadImageFromFile."""
        options = dict(results["scene"])
        index = options.pop("index")
        drawn = _scenes(**options)[index]
        name = results["everything"]
        counted = list(range(len(drawn.names)))
        if name is None:
            name = max(drawn.counts, key=lambda each: drawn.counts[each]) if drawn.counts else "object"
            counted = [index for index, each in enumerate(drawn.names) if each == name]
        corners = drawn.boxes_xyxy[counted].reshape(-1, 2, 2)
        put_image(results, drawn.image)
        results["name"] = name
        results["points_xy"] = corners.mean(axis=1).astype(np.float32)
        return results


@TRANSFORMS.register_module()
class CountCrop(BaseTransform):
    """A random crop with its dots, flipped and changed in colour; `ovseg.training.CountAugmentation`.

    Args:
        crop_hw: what comes out.
        options: of `CountAugmentation`.
    """

    def __init__(self, crop_hw: Sequence[int], **options: Any) -> None:
        pairs = {key: tuple(value) for key, value in options.items() if isinstance(value, list | tuple)}
        height, width = crop_hw
        self.augment = CountAugmentation(**{**options, **pairs, "crop_hw": (height, width)})

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Of `img`, bytes, and `points_xy`. Chances come from torch's generator."""
        rgb = torch.from_numpy(np.ascontiguousarray(results["img"][..., ::-1])).permute(2, 0, 1)
        image, points = self.augment(rgb.float() / 255, torch.from_numpy(results["points_xy"]))
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        results["img"] = np.ascontiguousarray(pixels[..., ::-1])
        results["points_xy"] = points.numpy()
        results["img_shape"] = pixels.shape[:2]
        return results


@TRANSFORMS.register_module()
class PackCounts(BaseTransform):
    """`inputs`, `(3, H, W)` bytes in BGR, and a data sample with `name` and `gt_points`, `(n, 2)`."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """The last of a pipeline."""
        sample = BaseDataElement(
            metainfo={key: results[key] for key in ("img_path", "img_shape", "ori_shape", "name")}
        )
        sample.gt_points = torch.from_numpy(np.asarray(results["points_xy"], np.float32).reshape(-1, 2))
        image = np.ascontiguousarray(results["img"].transpose(2, 0, 1))
        return {"inputs": torch.from_numpy(image), "data_samples": sample}
