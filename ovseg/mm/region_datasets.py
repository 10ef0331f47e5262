"""Annotated regions with the nouns that name them, as crops: of scenes, or of a file in COCO's form."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.structures import BaseDataElement

from ovseg.errors import ConfigError
from ovseg.heads.visual_prompts import masked_crops
from ovseg.mm.registry import DATASETS, METRICS, TRANSFORMS
from ovseg.mm.scenes_dataset import scene_set
from ovseg.proposals import coco_proposals
from ovseg.training.mask_prompt import split_regions


@DATASETS.register_module()
class SceneRegions(BaseDataset):
    """Scenes; their regions are the objects and what is seen of each background.

    Args:
        split, seed, length, size_hw: see `ovseg.scenes.SceneSet`.
        pipeline: begins with `RenderRegions`.
        kwargs: see `BaseDataset`.
    """

    def __init__(
        self,
        *,
        split: str = "train",
        seed: int = 0,
        length: int = 2000,
        size_hw: tuple[int, int] = (224, 288),
        **kwargs: Any,
    ) -> None:
        self.scene_options: dict[str, Any] = dict(
            split=split, seed=seed, length=length, size_hw=tuple(size_hw)
        )
        super().__init__(metainfo={"classes": scene_set(**self.scene_options).classes}, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry per scene."""
        options = self.scene_options
        name = f"scenes_{options['split']}_{options['seed']}"
        return [
            {"scene": {**options, "index": index}, "img_path": f"{name}_{index:05d}.png"}
            for index in range(options["length"])
        ]


@TRANSFORMS.register_module()
class RenderRegions(BaseTransform):
    """Draws the scene: `img` (BGR), its `regions` (masks), their `labels` and `nouns`."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """In the place of loading."""
        scene = dict(results["scene"])
        index = scene.pop("index")
        drawn = scene_set(**scene)[index]
        classes = scene_set(**scene).classes
        regions, labels = split_regions(drawn.labels, drawn.instances)
        return results | {
            "img": np.ascontiguousarray(drawn.image[..., ::-1]),
            "regions": regions,
            "labels": labels,
            "nouns": [classes[label] for label in labels],
        }


@DATASETS.register_module()
class CocoRegions(BaseDataset):
    """Masks and nouns of a file in COCO's form: COCO itself, or pairs that were mined from captions.

    An annotation has "image_id", "bbox", "segmentation" (polygons or RLE), and either "noun" or a
    "category_id", whose category's name is the noun. Crowds are left out, and images without annotations.

    Args:
        ann_file: the file.
        data_root, data_prefix: `dict(img_path="train2017")`, where the images lie.
        kwargs: see `BaseDataset`.
    """

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry per image.

        Raises:
            ConfigError: the file is not of that form, or holds no region.
        """
        path = Path(self.ann_file)
        try:
            told = json.loads(path.read_text())
            names = {each["id"]: each["name"] for each in told.get("categories", [])}
            files = {
                each["id"]: (each["file_name"], each["height"], each["width"]) for each in told["images"]
            }
            by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
            for each in told["annotations"]:
                if not each.get("iscrowd") and each.get("segmentation"):
                    noun = each["noun"] if "noun" in each else names[each["category_id"]]
                    by_image[each["image_id"]].append({**each, "noun": noun, "score": 1.0})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is no file of regions in COCO's form: {type(error).__name__}: {error}. Expected "
                f"'images' (id, file_name, height, width), 'annotations' (image_id, bbox, segmentation, and "
                f"noun or category_id) and 'categories' (id, name)"
            ) from error
        if not by_image:
            raise ConfigError(f"{path} has no annotation with a segmentation")
        nouns = sorted({each["noun"] for found in by_image.values() for each in found})
        self._metainfo["classes"] = tuple(nouns)
        place = {noun: index for index, noun in enumerate(nouns)}
        folder = Path(self.data_prefix.get("img_path", ""))
        return [
            {
                "img_path": str(folder / files[image][0]),
                "image_hw": files[image][1:],
                "annotations": found,
                "labels": np.array([place[each["noun"]] for each in found], np.int64),
                "nouns": [each["noun"] for each in found],
            }
            for image, found in by_image.items()
        ]


@TRANSFORMS.register_module()
class LoadRegions(BaseTransform):
    """The annotations of `CocoRegions` as `regions`; follows LoadImageFromFile."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Boxes without area are left out."""
        kept = [
            index
            for index, each in enumerate(results["annotations"])
            if min(map(float, each["bbox"][2:])) >= 1
        ]
        results["regions"] = coco_proposals(
            [results["annotations"][index] for index in kept], tuple(results["image_hw"])
        )
        results["labels"] = results["labels"][kept]
        results["nouns"] = [results["nouns"][index] for index in kept]
        return results


@TRANSFORMS.register_module()
class PackRegionCrops(BaseTransform):
    """Masked crops `(N, 3, side, side)` (BGR bytes) and masks `(N, side, side)`, with labels and nouns.

    Args:
        side: of the crops in pixels.
        at_most: so many of an image, drawn at random; None keeps all.
        flip: share of the crops that are mirrored.
    """

    def __init__(self, side: int = 224, at_most: int | None = None, flip: float = 0.0) -> None:
        self.side, self.at_most, self.flip = side, at_most, flip

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """The last step."""
        regions, labels, nouns = results["regions"], results["labels"], results["nouns"]
        chosen: Any = np.arange(len(regions))
        if self.at_most is not None and len(regions) > self.at_most:
            chosen = np.random.permutation(len(regions))[: self.at_most]  # noqa: NPY002  # seeded by draw
        crops = np.zeros((len(chosen), 3, self.side, self.side), np.uint8)
        masks = np.zeros((len(chosen), self.side, self.side), bool)
        image = results["img"][..., ::-1]
        for place, (picture, where) in enumerate(masked_crops(image, regions.select(chosen), side=self.side)):
            step = -1 if np.random.random() < self.flip else 1  # noqa: NPY002
            crops[place] = picture[:, ::step, ::-1].transpose(2, 0, 1)
            masks[place] = where[:, ::step]
        sample = BaseDataElement(
            metainfo={"img_path": results["img_path"], "nouns": tuple(nouns[index] for index in chosen)}
        )
        sample.gt_labels = torch.from_numpy(labels[chosen])
        return {
            "inputs": {"crops": torch.from_numpy(crops), "masks": torch.from_numpy(masks)},
            "data_samples": sample,
        }


@METRICS.register_module()
class RegionAccuracy(BaseMetric):
    """How many regions get their own noun, in percent: of all, and the mean over classes."""

    default_prefix = "regions"

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Collects right and given labels."""
        for sample in data_samples:
            self.results.append((sample["gt_labels"].cpu().numpy(), sample["pred_labels"].cpu().numpy()))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Of all regions together."""
        truth, said = (np.concatenate(each) for each in zip(*results, strict=True))
        right = truth == said
        classes = [right[truth == label].mean() for label in np.unique(truth)]
        return {"accuracy": 100 * float(right.mean()), "class_accuracy": 100 * float(np.mean(classes))}
