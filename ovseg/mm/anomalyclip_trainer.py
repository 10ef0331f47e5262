"""AnomalyCLIP's prompts, trained from images of damage on some things to find damage on others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmseg.structures import SegDataSample
from torch import Tensor

from ovseg.anomaly_build import given_threshold
from ovseg.anomaly_detectors import WordDetector
from ovseg.anomaly_inferencer import AnomalyInferencer
from ovseg.anomaly_results import AnomalyMap
from ovseg.anomaly_structures import StateBank
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.clip_loading import default_encoder, load_clip
from ovseg.errors import ConfigError
from ovseg.heads.anomaly import AnomalyHead
from ovseg.methods.anomalyclip import AnomalyCLIP, ObjectPrompts
from ovseg.mm.anomaly_model import pack
from ovseg.mm.build import plain
from ovseg.mm.core_model import to_rgb
from ovseg.mm.registry import MODELS
from ovseg.mm.trainable import TrainableModel
from ovseg.text.encoder import TextEncoder
from ovseg.training.anomaly_losses import glocal_loss


@MODELS.register_module()
class AnomalyClipTrainer(TrainableModel):
    """Learned prompts of "object." and "damaged object.", which know no class names; the towers are frozen.

    Data samples bring `gt_sem_seg`, not 0 where something is damaged; pipelines load and pack, nothing else,
    and images are resized to a square here, as the method does at inference.

    Checkpoints name their tensors as the official ones do: `ovseg.methods.anomalyclip.ObjectPrompts` and the
    test configs of AnomalyCLIP read them, too.

    Args:
        encoder, weights: the CLIP that the prompts are for.
        length: learned vectors before the words.
        deep_blocks, deep_length: text blocks that get tokens of their own, and how many.
        size: side of the square that images are resized to.
        map_weight: of the maps' loss against that of the images.
        method: options of `AnomalyCLIP`.
        head: options of `AnomalyHead`; `threshold` may be a number or a file, see `given_threshold`.
        options: of `TrainableModel`.
    """

    task = "anomaly"

    def __init__(
        self,
        *,
        encoder: str | None = None,
        weights: str | None = None,
        length: int = 12,
        deep_blocks: int = 8,
        deep_length: int = 4,
        size: int = 518,
        map_weight: float = 4.0,
        method: Mapping[str, Any] | None = None,
        head: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        loaded = load_clip(encoder or default_encoder(), weights=None if weights is None else Path(weights))
        tower = ClipEncoder.of(loaded)
        self.method_options = plain(method or {})
        self.detector = WordDetector(AnomalyCLIP(tower, **self.method_options), size=size)
        self.encoder = tower
        self.text_encoder = TextEncoder.of(loaded)
        text: Any = self.text_encoder.text
        depth = len(text.transformer.resblocks)
        if not 0 <= deep_blocks < depth:
            raise ConfigError(
                f"model.deep_blocks is {deep_blocks}: the text tower of {loaded.name} has {depth} blocks, of "
                f"which all but the first can have tokens (at most {depth - 1})"
            )
        width = text.token_embedding.embedding_dim
        self.prompt_learner = ObjectPrompts(
            width, length=length, deep_blocks=deep_blocks, deep_length=deep_length
        )
        self.map_weight = map_weight
        reading = plain(head or {})
        if not reading.get("keep_scores", True):
            del reading["keep_scores"]  # a command line's, of segmentation: off, there is nothing to keep
        self.head = AnomalyHead(**reading | {"threshold": given_threshold(reading.get("threshold"))})
        self.notice = loaded.notice
        self.freeze()

    def trained(self) -> Sequence[str]:
        """The prompts."""
        return ("prompt_learner",)

    def loss(
        self, inputs: Sequence[Tensor], data_samples: Sequence[SegDataSample] | None
    ) -> dict[str, Tensor]:
        """Of images and maps together (`glocal_loss`).

        Raises:
            ConfigError: the images came without masks.
        """
        if data_samples is None or any("gt_sem_seg" not in sample for sample in data_samples):
            raise ConfigError(
                "AnomalyCLIP learns from masks: put LoadAnomalyMask (or RenderDefects) into the pipeline"
            )
        side = (self.detector.size, self.detector.size)
        method = self.detector.method
        features = method.features(self.detector.whole([to_rgb(each) for each in inputs]))
        masks = [(sample.gt_sem_seg.data != 0).float() for sample in data_samples]
        small = [F.interpolate(each[None], side, mode="bilinear")[0, 0] > 0.5 for each in masks]
        damaged = torch.stack([each.any() for each in masks]).long()
        bank = self.prompt_learner(self.text_encoder)
        maps = [
            F.interpolate(each, side, mode="bilinear", align_corners=False)
            for each in method.maps(features, bank)
        ]
        logits = bank.logits(features.image, method.temperature)
        total = glocal_loss(
            logits,
            damaged.to(logits.device),
            maps,
            torch.stack(small).to(logits),
            map_weight=self.map_weight,
        )
        return {"loss": total}

    def predictor(self) -> AnomalyInferencer:
        """AnomalyCLIP with what was trained; any name of a thing has the same prompts."""

        @torch.no_grad()
        def words(_: str) -> StateBank:
            return self.prompt_learner(self.text_encoder)

        about = {
            "method": "anomalyclip",
            "options": self.method_options | {"size": self.detector.size},
            "encoder": self.encoder.name,
            "weights_sha256": self.encoder.weights_sha256,
            "parts": {"prompts": self.provenance},
        }
        return AnomalyInferencer(
            self.detector,
            words=words,
            head=self.head,
            about=about,
            notice=self.notice,
            device=self.encoder.mean.device,
        )

    def results(self, images: Sequence[np.ndarray], samples: Sequence[SegDataSample]) -> list[AnomalyMap]:
        """The map of each image."""
        return [each.of(self.task) for each in self.ask(images, "object")]

    def pack(self, sample: SegDataSample, result: AnomalyMap) -> SegDataSample:
        """The sample with `pred_anomaly_map` and `pred_score`."""
        return pack(sample, result)
