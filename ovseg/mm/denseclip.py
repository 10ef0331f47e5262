"""DenseCLIP for segmentation under the Runner, with mmseg's necks and heads as decoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

from ovseg.encoders.clip_loading import default_encoder, load_clip
from ovseg.errors import ConfigError
from ovseg.heads import SegmentationHead
from ovseg.mm.build import build_vocabulary, plain
from ovseg.mm.foreign_models import register_models
from ovseg.mm.registry import MODELS
from ovseg.mm.trainable import TrainableModel
from ovseg.training.denseclip_losses import IGNORED, score_map_loss
from ovseg.training.denseclip_net import DenseClipNet
from ovseg.training.denseclip_predictor import DenseClipPredictor
from ovseg.windows import WindowPlan


@MODELS.register_module()
class DenseClip(TrainableModel):
    """Image tower, contexts, context decoder, neck and head are trained; the text tower is not.

    Pipelines load, augment, crop and pack; no normalisation and no padding: both follow the encoder here. In
    testing they load and pack only, labels come back at the image's own size.

    Args:
        classes: what the decoder is trained with, in the order of the labels. See `build_vocabulary`.
        decode_head: a decode head of mmseg; number of classes and, without a neck, input channels are known.
        neck: a neck of mmseg, whose input channels are known; None gives the head the pyramid.
        auxiliary_head: a further decode head of mmseg on the pyramid or the neck's output, for training.
        encoder: the CLIP: a ResNet, or a ViT of patch 16.
        matching: options of `PixelTextMatching`.
        pyramid: options of `build_pyramid`.
        score_weight: of the score map's own loss.
        short_side, windows: of prediction; see `DenseClipPredictor`. Windows are `WindowPlan`'s options.
        vocabulary: what `predict` asks for, by default the classes.
        answer: "decoder", or "score_map" for its classes, too; other words are the score map's always.
        head: options of `SegmentationHead`.
        options: of `TrainableModel`.
    """

    def __init__(
        self,
        classes: Any,
        decode_head: Mapping[str, Any],
        *,
        neck: Mapping[str, Any] | None = None,
        auxiliary_head: Mapping[str, Any] | None = None,
        encoder: str | None = None,
        matching: Mapping[str, Any] | None = None,
        pyramid: Mapping[str, Any] | None = None,
        score_weight: float = 0.4,
        short_side: int = 512,
        windows: Mapping[str, Any] | None = None,
        vocabulary: Any = None,
        answer: Literal["decoder", "score_map"] = "decoder",
        head: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        register_models("mmseg")
        trained_with = build_vocabulary(classes)
        self.vocabulary = trained_with if vocabulary is None else build_vocabulary(vocabulary)
        clip = load_clip(encoder or default_encoder())
        self.notice = clip.notice
        self.net = DenseClipNet(clip, trained_with.names, matching=plain(matching), pyramid=plain(pyramid))
        channels = self.net.channels
        self.neck = None
        if neck is not None:
            self.neck = MODELS.build({"in_channels": channels, **plain(neck)})
            channels = [neck["out_channels"]] * neck.get("num_outs", 4)
        self.decode_head = self._head(decode_head, channels)
        self.auxiliary_head = None if auxiliary_head is None else self._head(auxiliary_head, channels)
        if answer not in ("decoder", "score_map"):
            raise ConfigError(f"answer must be 'decoder' or 'score_map', got '{answer}'")
        self.answer = answer
        self.score_weight = score_weight
        self.short_side = short_side
        self.windows = WindowPlan(**plain(windows or {}))
        self.head_options = plain(head or {})
        self.freeze()

    def _head(self, config: Mapping[str, Any], channels: Sequence[int]) -> Any:
        options = plain(config)
        index = options.get("in_index", list(range(len(channels))))
        known = channels[index] if isinstance(index, int) else [channels[i] for i in index]
        return MODELS.build({"num_classes": len(self.net.names), "in_channels": known} | options)

    @property
    def encoder(self) -> DenseClipNet:
        """What says which CLIP it is."""
        return self.net

    def trained(self) -> Sequence[str]:
        """All but the text tower."""
        names = ("net.backbone", "net.matching", "neck", "decode_head", "auxiliary_head")
        return tuple(each for each in names if each.startswith("net.") or getattr(self, each) is not None)

    def describe(self) -> dict[str, Any]:
        """With the classes, which the decoder's channels are."""
        return super().describe() | {"classes": list(self.net.names)}

    def decode(self, levels: Sequence[Tensor]) -> Tensor:
        """The pyramid with its score map to logits at stride 4."""
        return self.decode_head(self._necked(levels))

    def _necked(self, levels: Sequence[Tensor]) -> Sequence[Tensor]:
        return levels if self.neck is None else self.neck(levels)

    def loss(
        self, inputs: Sequence[Tensor], data_samples: Sequence[SegDataSample] | None
    ) -> dict[str, Tensor]:
        """The decoder's losses, and the score map's.

        Raises:
            ConfigError: images without labels, or not as bytes.
        """
        rgb, labels = padded_batch(inputs, data_samples, self.net.backbone.multiple)
        inside = labels >= 0  # padding has the mean colour
        pixels = torch.where(inside[:, None], self.net.normalise(rgb), 0.0)
        labels = torch.where(inside, labels, IGNORED)
        found = self.net(pixels)
        levels = self._necked(found.levels)
        truth = [SegDataSample(gt_sem_seg=PixelData(data=each[None])) for each in labels]
        losses = {"loss_score_map": self._score_loss(found.cosine, labels)}
        for prefix, head in (("decode", self.decode_head), ("auxiliary", self.auxiliary_head)):
            if head is not None:
                each = head.loss_by_feat(head(levels), truth)
                losses |= {f"{prefix}.{name}": value for name, value in each.items()}
        return losses

    def _score_loss(self, cosine: Tensor, labels: Tensor) -> Tensor:
        return score_map_loss(
            cosine, labels, temperature=self.net.matching.temperature, weight=self.score_weight
        )

    def predictor(self) -> DenseClipPredictor:
        """The decoder for the classes that it was trained with, the score map for other words."""
        return DenseClipPredictor(
            self.net,
            self.decode if self.answer == "decoder" else None,
            windows=self.windows,
            short_side=self.short_side,
            head=SegmentationHead(**self.head_options),
            described={"parts": {"denseclip": self.provenance}},
            notice=self.notice,
        )


def padded_batch(
    inputs: Sequence[Tensor], data_samples: Sequence[SegDataSample] | None, multiple: int
) -> tuple[Tensor, Tensor]:
    """Images `(3, H, W)` uint8 BGR of any sizes as RGB in [0, 1], with their labels, of one size.

    Returns:
        images, labels `(B, H, W)`; what was added at right and bottom has the label -1.

    Raises:
        ConfigError: no labels, or images that are not bytes.
    """
    if not data_samples or any("gt_sem_seg" not in sample for sample in data_samples):
        raise ConfigError("DenseCLIP learns from labels: the pipeline lacks mmseg.LoadAnnotations")
    if any(each.dtype != torch.uint8 for each in inputs):
        raise ConfigError("expected images as bytes (3, H, W): do not normalise them in the pipeline")
    sides = [max(each.shape[axis] for each in inputs) for axis in (1, 2)]
    height, width = (-(-side // multiple) * multiple for side in sides)
    images, labels = [], []
    for image, sample in zip(inputs, data_samples, strict=True):
        pad = (0, width - image.shape[2], 0, height - image.shape[1])
        images.append(F.pad(image.flip(0).float() / 255, pad))
        labels.append(F.pad(sample.gt_sem_seg.data[0].long(), pad, value=-1))
    return torch.stack(images), torch.stack(labels)
