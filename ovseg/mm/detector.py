"""The detector that mmengine's Runner tests: data samples in, the core's answers, data samples out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from PIL import Image
from torch import Tensor

from ovseg.answers import check_tasks
from ovseg.detection_results import Detections
from ovseg.errors import ConfigError
from ovseg.heads import SegmentationHead
from ovseg.heads.detection import DetectionHead
from ovseg.heads.instances import InstanceHead
from ovseg.heads.regions import RegionHead
from ovseg.inferencer import Inferencer
from ovseg.mm.build import build_inferencer, build_part, build_vocabulary, plain
from ovseg.mm.core_model import CoreModel, to_rgb
from ovseg.mm.registry import MODELS
from ovseg.outputs.drawing import detection_overlay
from ovseg.parts import LOADERS
from ovseg.region_route import RegionRoute, build_proposals
from ovseg.tasks import TaskHeads
from ovseg.text.vocabulary import ClassEntry, Vocabulary


@MODELS.register_module()
class OvDetector(CoreModel):
    """A training-free method as a detector: mmdet's data sets, data samples and metrics, none of its models.

    Pipelines load images and pack them, nothing else, as for `OvSegmentor`.

    Args:
        method, encoder, weights, templates, dtype: see `OvSegmentor`.
        vocabulary: the classes, in the order of the data set's labels.
        task: "detect" takes boxes (with masks) from `DetectionHead`, "instances" the segments of
            `InstanceHead`, of which no two share a pixel.
        background: what competes with the classes, so that there can be nothing: words, or anything else that
            `build_vocabulary` takes; None takes `ovseg.heads.background.BACKGROUND_NAMES`.
        head: options of the task's head (`InstanceHead` takes `threshold` and `area_threshold` of
            `SegmentationHead` along); with proposals, of `RegionHead`.
        outlines: the name of a SAM that redraws boxes and masks; None leaves them as the score map has them.
        proposals: regions that get words, instead of boxes from the score map, see
            `ovseg.region_route.build_proposals`: "sam", a file, `dict(type="sam", points_per_side=16)`.
        crops: with proposals, see `ovseg.region_route.RegionRoute`.
        data_preprocessor: by default mmengine's plain one, which moves data and changes nothing.
        others: of `ovseg.Inferencer`, such as `text_cache`.
    """

    sample_type = DetDataSample

    def __init__(
        self,
        method: str | Mapping[str, Any],
        vocabulary: Any,
        *,
        task: str = "detect",
        encoder: str | None = None,
        weights: str | None = None,
        templates: str | Sequence[str] = "imagenet80",
        background: Any = None,
        head: Mapping[str, Any] | None = None,
        outlines: str | None = None,
        proposals: Any = None,
        crops: str | None = None,
        dtype: str = "float32",
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        if task not in ("detect", "instances"):
            raise ConfigError(f"task must be 'detect' or 'instances', got '{task}'")
        if proposals is None and crops is not None:
            raise ConfigError("crops are pictures of proposals: name proposals, or leave crops out")
        if proposals is not None and (task != "detect" or outlines is not None):
            raise ConfigError("with proposals the task is 'detect', and their outlines are their own")
        (self.task,) = check_tasks(task)
        self.vocabulary = build_vocabulary(vocabulary)
        self.asked = with_background(self.vocabulary, background)
        self.templates = plain(templates)
        options = plain(head or {})
        self.use(
            build_inferencer(
                method,
                encoder=encoder,
                weights=weights,
                device="cpu",
                dtype=dtype,
                heads=None if proposals is not None else task_heads(task, options, outlines),
                **others,
            )
        )
        self.route: RegionRoute | None = None
        if proposals is not None:
            self.route = RegionRoute(
                self.inferencer,
                build_proposals(plain(proposals), bundled=encoder == "bundled"),
                head=build_part({"type": RegionHead} | options, "head"),
                crops=crops,
            )
        # Known to torch, as the inferencer's other networks.
        self.outlines = self.inferencer.heads.sam
        self.proposer = None if self.route is None else getattr(self.route.proposals, "sam", None)
        self.eval()

    def results(self, images: Sequence[Any], samples: Sequence[DetDataSample]) -> list[Detections]:
        """The objects of each image."""
        return self.detect(images, [sample.get("img_path") for sample in samples])

    def pack(self, sample: DetDataSample, result: Detections) -> DetDataSample:
        """The sample with `pred_instances`."""
        return pack(sample, result)

    def predictor(self) -> Inferencer | RegionRoute:
        """What `tools/infer.py` asks."""
        return self.route or self.inferencer

    def draw(self, packed: Tensor, sample: DetDataSample) -> Image.Image:
        """The picture that `--show-dir` keeps: a packed image with its boxes, masks, names and scores."""
        image = to_rgb(packed)
        found = unpack(sample, self.vocabulary, image.shape[:2])
        return detection_overlay(image, found, colors=self.vocabulary.colors)

    def detect(self, images: Sequence[Any], paths: Sequence[str | None] = ()) -> list[Detections]:
        """The objects of each image, as the core answers.

        Args:
            images: RGB.
            paths: where each lies, for proposals that are found by name.
        """
        answers = self.ask(images, self.asked, (paths or [None] * len(images)) if self.route else None)
        found = [each.of(self.task) for each in answers]
        return found if self.task == "detect" else [each.detections() for each in found]


def with_background(vocabulary: Vocabulary, background: Any) -> Vocabulary:
    """The vocabulary and, last, a background for which other words speak; itself where none are given.

    Raises:
        ConfigError: it has a background of its own already.
    """
    if background is None:
        return vocabulary
    if vocabulary.background:
        names = ", ".join(vocabulary.names[k] for k in sorted(vocabulary.background))
        raise ConfigError(f"the vocabulary has a background already ({names}): leave `background` out")
    words = tuple(query.text for query in build_vocabulary(background).queries)
    entry = ClassEntry("background", words, background=True)
    return replace(vocabulary, classes=(*vocabulary.classes, entry))


def task_heads(task: str, options: dict[str, Any], outlines: str | None) -> TaskHeads:
    """The heads of a detector.

    Args:
        task: "detect" or "instances".
        options: of its head.
        outlines: the name of a SAM, or None.
    """
    sam = None if outlines is None else LOADERS["sam"](outlines).eval().requires_grad_(False)
    if task == "detect":
        return TaskHeads(detect=build_part({"type": DetectionHead} | options, "head"), sam=sam)
    first = {key: options.pop(key) for key in ("threshold", "area_threshold") if key in options}
    return TaskHeads(
        build_part({"type": SegmentationHead} | first, "head"),
        build_part({"type": InstanceHead} | options, "head"),
        sam=sam,
    )


def pack(sample: DetDataSample, found: Detections) -> DetDataSample:
    """The sample with `pred_instances`: boxes xyxy, labels, scores, and masks as COCO's run lengths."""
    instances = InstanceData()
    instances.bboxes = torch.from_numpy(found.boxes_xyxy)
    instances.labels = torch.from_numpy(found.labels)
    instances.scores = torch.from_numpy(found.scores)
    if found.masks is not None:
        instances.masks = [dict(each) for each in found.masks]
    sample.pred_instances = instances
    return sample


def unpack(sample: DetDataSample, vocabulary: Vocabulary, image_hw: tuple[int, int]) -> Detections:
    """The inverse of `pack`."""
    instances = sample.pred_instances
    return Detections(
        instances.bboxes.cpu().numpy(),
        instances.labels.cpu().numpy(),
        instances.scores.cpu().numpy(),
        vocabulary.names,
        image_hw,
        tuple(instances.masks) if "masks" in instances else None,
    )
