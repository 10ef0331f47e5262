"""The procedural scenes as a detection data set: objects with boxes and masks, drawn when asked for."""

from __future__ import annotations

from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset

from ovseg.mm.registry import DATASETS, MODELS, TRANSFORMS
from ovseg.mm.scenes_dataset import entries, put_image, scene_set
from ovseg.outputs.palette import class_colors
from ovseg.rle import encode_mask
from ovseg.scenes import SceneSet


@MODELS.register_module(name="SceneObjects")
def scene_objects(split: str = "test") -> tuple[str, ...]:
    """What may stand in a split's scenes; the classes of `ScenesDetectionDataset`."""
    scenes = SceneSet(split)
    return tuple(each for each in scenes.classes if each not in scenes.background_classes)


@DATASETS.register_module()
class ScenesDetectionDataset(BaseDataset):
    """Scenes with the box and the mask of every object.

    Args:
        split, seed, length, size_hw: see `ovseg.scenes.SceneSet`. Tune on "val", report on the others.
        pipeline: begins with `RenderSceneObjects` in the place of loading the image; mmdet's
            `LoadAnnotations` may follow.
        kwargs: see mmengine's `BaseDataset`.
    """

    def __init__(
        self,
        *,
        split: str = "test",
        seed: int = 0,
        length: int = 64,
        size_hw: tuple[int, int] = (224, 288),
        **kwargs: Any,
    ) -> None:
        self.scene_options: dict[str, Any] = {
            "split": split,
            "seed": seed,
            "length": length,
            "size_hw": tuple(size_hw),
        }
        classes = scene_objects(split)
        super().__init__(metainfo={"classes": classes, "palette": class_colors(classes)}, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry per scene."""
        return entries(self.scene_options)


@TRANSFORMS.register_module()
class RenderSceneObjects(BaseTransform):
    """Draws the scene: `img` (BGR, as loaders give it) and `instances`, as mmdet's data sets tell them."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """In the place of LoadImageFromFile."""
        options = dict(results["scene"])
        index = options.pop("index")
        scenes = scene_set(**options)
        drawn = scenes[index]
        objects = scene_objects(options["split"])
        place = {scenes.classes.index(name): label for label, name in enumerate(objects)}
        put_image(results, drawn.image)
        results["height"], results["width"] = drawn.image.shape[:2]
        results["instances"] = [
            {
                "bbox": box.tolist(),
                "bbox_label": place[int(label)],
                "mask": dict(encode_mask(drawn.instances == number)),
                "ignore_flag": 0,
            }
            for number, (box, label) in enumerate(
                zip(drawn.boxes_xyxy, drawn.instance_classes, strict=True), start=1
            )
        ]
        return results
