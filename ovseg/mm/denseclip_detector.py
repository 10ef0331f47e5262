"""DenseCLIP for detection: mmdet's detectors on a pyramid with a score map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from torch import Tensor

import ovseg
from ovseg.answers import Answers, check_tasks
from ovseg.detection_results import Detections
from ovseg.encoders.clip_loading import default_encoder, load_clip
from ovseg.errors import ConfigError, VocabularyError
from ovseg.images import read_image
from ovseg.mm.build import build_vocabulary, plain
from ovseg.mm.detector import pack
from ovseg.mm.foreign_models import register_models
from ovseg.mm.registry import MODELS
from ovseg.mm.trainable import TrainableModel
from ovseg.rle import encode_mask
from ovseg.structures import TextBank
from ovseg.text.vocabulary import Vocabulary
from ovseg.training.denseclip import PixelText
from ovseg.training.denseclip_losses import box_score_loss, box_targets
from ovseg.training.denseclip_net import DenseClipNet
from ovseg.windows import resize_image, resized_hw


@MODELS.register_module()
class DenseClipBackbone(BaseModule):
    """A backbone for mmdet's (or mmseg's) models: four levels, one of them with the score map appended.

    Args:
        net: the network; None builds it from the rest.
        classes: see `build_vocabulary`.
        encoder: the CLIP: a ResNet, or a ViT of patch 16.
        matching: options of `PixelTextMatching`; published for detection: `appended="logits"`.
        pyramid: options of `build_pyramid`.
    """

    def __init__(
        self,
        net: DenseClipNet | None = None,
        *,
        classes: Any = None,
        encoder: str | None = None,
        matching: Mapping[str, Any] | None = None,
        pyramid: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = net or DenseClipNet(
            load_clip(encoder or default_encoder()),
            build_vocabulary(classes).names,
            matching={"appended": "logits"} | plain(matching or {}),
            pyramid=plain(pyramid),
        )

    def forward(self, inputs: Tensor | PixelText) -> tuple[Tensor, ...]:
        """Levels of normalised pixels, or of what the network has made of them already."""
        return (inputs if isinstance(inputs, PixelText) else self.net(inputs)).levels


@MODELS.register_module()
class DenseClipDetector(TrainableModel):
    """A detector of mmdet on `DenseClipBackbone`; all is trained but the text tower.

    Pipelines load, resize, flip and pack for training; normalisation follows the encoder here. In testing
    they load and pack only, boxes and masks come back in the image's own pixels.

    Args:
        classes: of the objects, in the order of the labels. See `build_vocabulary`.
        detector: a detector of mmdet without its backbone; numbers of classes, the neck's input channels and
            the preprocessor's statistics are known.
        encoder, matching, pyramid: see `DenseClipBackbone`.
        score_weight: of the score map's own loss; 0 leaves it out.
        as_published: targets of that loss as in the authors' code, see `box_targets`.
        scale: short and long side to which images are resized for prediction.
        options: of `TrainableModel`.
    """

    task = "detect"
    sample_type = DetDataSample

    def __init__(
        self,
        classes: Any,
        detector: Mapping[str, Any],
        *,
        encoder: str | None = None,
        matching: Mapping[str, Any] | None = None,
        pyramid: Mapping[str, Any] | None = None,
        score_weight: float = 1.0,
        as_published: bool = False,
        scale: tuple[int, int] = (800, 1333),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        register_models("mmdet")
        self.vocabulary = build_vocabulary(classes)
        clip = load_clip(encoder or default_encoder())
        self.notice = clip.notice
        backbone = DenseClipBackbone(
            DenseClipNet(
                clip,
                self.vocabulary.names,
                matching={"appended": "logits"} | plain(matching or {}),
                pyramid=plain(pyramid),
            )
        )
        net = backbone.net
        built = with_classes(plain(detector), len(net.names))
        built["neck"] = {"in_channels": net.channels} | built["neck"]
        built["backbone"] = {"type": "ovseg.DenseClipBackbone", "net": net}
        built["data_preprocessor"] = {
            "type": "DetDataPreprocessor",
            "mean": (255 * net.mean).flatten().tolist(),
            "std": (255 * net.std).flatten().tolist(),
            "bgr_to_rgb": True,
            "pad_mask": True,
            "pad_size_divisor": net.backbone.multiple * (1 if net.backbone.multiple == 32 else 2),
        }
        self.detector = MODELS.build(ConfigDict(built | {"_scope_": "mmdet"}))
        self.score_weight, self.as_published = score_weight, as_published
        self.scale = (scale[0], scale[1])
        self.freeze()

    @property
    def net(self) -> DenseClipNet:
        """Towers and score map."""
        return self.detector.backbone.net

    @property
    def encoder(self) -> DenseClipNet:
        """What says which CLIP it is."""
        return self.net

    def trained(self) -> Sequence[str]:
        """All but the text tower, which is no submodule."""
        return ("detector",)

    def describe(self) -> dict[str, Any]:
        """With the classes, which the detector's outputs are."""
        return super().describe() | {"classes": list(self.net.names)}

    def loss(
        self, inputs: Sequence[Tensor], data_samples: Sequence[DetDataSample] | None
    ) -> dict[str, Tensor]:
        """The detector's losses, and the score map's."""
        data = self.detector.data_preprocessor({"inputs": inputs, "data_samples": data_samples}, True)
        pixels, samples = data["inputs"], data["data_samples"]
        found = self.net(pixels)
        losses = {name: _total(each) for name, each in self.detector.loss(found, samples).items()}
        if self.score_weight:
            target, mask = box_targets(
                [sample.gt_instances.bboxes for sample in samples],
                [sample.gt_instances.labels for sample in samples],
                classes=len(self.net.names),
                image_hw=(pixels.shape[-2], pixels.shape[-1]),
                as_published=self.as_published,
            )
            temperature = self.net.matching.temperature
            losses["loss_score_map"] = self.score_weight * box_score_loss(
                found.cosine, target, mask, temperature=temperature
            )
        return losses

    def pack(self, sample: DetDataSample, result: Detections) -> DetDataSample:
        """The sample with `pred_instances`."""
        return pack(sample, result)

    @torch.no_grad()
    def detect(self, image: np.ndarray) -> Detections:
        """The objects of an RGB image, in its own pixels."""
        hw = resized_hw(image.shape[:2], *self.scale)
        resized = resize_image(image, hw)
        sample = DetDataSample(
            metainfo={
                "img_shape": hw,
                "ori_shape": image.shape[:2],
                "scale_factor": (hw[1] / image.shape[1], hw[0] / image.shape[0]),
            }
        )
        pixels = torch.from_numpy(np.ascontiguousarray(resized[..., ::-1].transpose(2, 0, 1)))
        data = self.detector.data_preprocessor({"inputs": [pixels], "data_samples": [sample]}, False)
        found = self.detector.predict(data["inputs"], data["data_samples"])[0].pred_instances
        masks = found.masks.cpu().numpy().astype(bool) if "masks" in found else None
        return Detections(
            found.bboxes.cpu().numpy().astype(np.float32),
            found.labels.cpu().numpy().astype(np.int64),
            found.scores.cpu().numpy().astype(np.float32),
            self.vocabulary.names,
            image.shape[:2],
            None if masks is None else tuple(encode_mask(each) for each in masks),
        )

    def predictor(self) -> DetectorPredictor:
        """The detector for the classes that it was trained with."""
        return DetectorPredictor(self)


class DetectorPredictor:
    """A trained detector, asked as an `Inferencer` is asked, for the task "detect" and its own classes.

    Args:
        model: the detector.
    """

    def __init__(self, model: DenseClipDetector) -> None:
        self.model = model
        self.notice = model.notice

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.model.net.mean.device

    def describe(self) -> dict[str, Any]:
        """All that changes results, JSON-ready."""
        return {
            **self.model.describe(),
            "parts": {"denseclip": self.model.provenance},
            "scale": list(self.model.scale),
            "versions": {"ovseg": ovseg.__version__, "torch": torch.__version__},
        }

    def chosen(self, vocabulary: Vocabulary) -> list[int]:
        """The detector's class of each that is asked for.

        Raises:
            VocabularyError: one that it does not have.
        """
        known = {name.casefold(): index for index, name in enumerate(self.model.vocabulary.names)}
        new = [name for name in vocabulary.names if name.casefold() not in known]
        if new:
            raise VocabularyError(
                f"the detector was not trained with '{new[0]}'; it has {len(known)} classes: "
                f"{', '.join(list(self.model.vocabulary.names)[:10])} ..."
            )
        return [known[name.casefold()] for name in vocabulary.names]

    def bank(self, classes: Any, templates: Any = None) -> tuple[Vocabulary, TextBank]:
        """Words, checked and encoded without any image. Templates are not asked: contexts are learned."""
        vocabulary = Vocabulary.parse(classes)
        chosen = self.chosen(vocabulary)
        net = self.model.net
        with torch.no_grad():
            encoded = net.encode()
            rows = net.text(net.tokens) if encoded is None else encoded[0]
        rows = torch.nn.functional.normalize(rows[chosen].float(), dim=-1)
        return vocabulary, TextBank(rows, torch.arange(len(chosen), device=rows.device), vocabulary.names)

    def answers(
        self, images: Iterable[Any], classes: Any, *, tasks: str | Iterable[str] = ("detect",), **_: Any
    ) -> Iterator[Answers]:
        """Boxes, and masks where the detector has them; lazily and in order.

        Raises:
            VocabularyError: a class that the detector does not have.
            ConfigError: another task.
        """
        if check_tasks(tasks) != ("detect",):
            raise ConfigError("this detector answers the task 'detect' only")
        vocabulary = Vocabulary.parse(classes)
        return self._answers(iter(images), vocabulary, self.chosen(vocabulary))

    def _answers(self, images: Iterator[Any], vocabulary: Vocabulary, chosen: list[int]) -> Iterator[Answers]:
        place = np.full(len(self.model.vocabulary), -1)
        place[chosen] = np.arange(len(chosen))
        while batch := [read_image(image) for image in islice(images, 1)]:
            found = self.model.detect(batch[0])
            found = found.select(place[found.labels] >= 0)
            kept = Detections(
                found.boxes_xyxy,
                place[found.labels],
                found.scores,
                vocabulary.names,
                found.image_hw,
                found.masks,
            )
            yield Answers(found.image_hw, vocabulary.names, detections=kept)


def _total(loss: Tensor | Sequence[Tensor]) -> Tensor:
    """A loss of one part, or of each level."""
    return loss if isinstance(loss, Tensor) else torch.stack([each.mean() for each in loss]).sum()


def with_classes(config: Any, count: int) -> Any:
    """A config in which every `num_classes` is this one."""
    if isinstance(config, Mapping):
        return {
            key: count if key == "num_classes" else with_classes(each, count) for key, each in config.items()
        }
    if isinstance(config, list | tuple):
        return type(config)(with_classes(each, count) for each in config)
    return config
