"""CLIP-EBC, trained from dots under the Runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovseg.count_inferencer import CountInferencer
from ovseg.counting_results import ClassCount
from ovseg.encoders.clip_loading import default_encoder, load_clip
from ovseg.encoders.clip_resnet import ClipResNet
from ovseg.errors import ConfigError
from ovseg.heads.count_bins import CountBins
from ovseg.methods.clip_ebc import clip_ebc
from ovseg.mm.build import plain
from ovseg.mm.counter import draw_counted
from ovseg.mm.registry import MODELS
from ovseg.mm.trainable import TrainableModel, rgb_batch
from ovseg.training.count_losses import CountLoss, dace_loss


def build_bins(config: Mapping[str, Any]) -> CountBins:
    """Bins from a config.

    Args:
        config: `dict(dataset="sha", block_px=8, most=4)`, published ones, or
            `dict(most=2, open_centre=2.1, block_px=32)`: one for each number below `most`, one for the rest.

    Raises:
        ConfigError: neither of these.
    """
    options = plain(config)
    try:
        if "dataset" in options:
            return CountBins.published(options.pop("dataset"), **options)
        return CountBins.single(options.pop("most"), options.pop("open_centre"), **options)
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"model.bins {plain(config)} cannot be built ({error}): expected dict(dataset='sha', block_px=8, "
            f"most=4) or dict(most=2, open_centre=2.1, block_px=32)"
        ) from error


@MODELS.register_module()
class EbcCounterModel(TrainableModel):
    """Blocks of crops are classified by how many dots they hold; it predicts windows of whole images.

    Pipelines crop (`CountCrop`) and pack (`PackCounts`). A ViT stays frozen and learns prompts, a ResNet
    learns as a whole; see `ovseg.methods.clip_ebc`.

    Args:
        bins: see `build_bins`.
        encoder: a CLIP; "RN50:openai" and the like are ResNets.
        weights: a local file instead of the encoder's own.
        singular, plural, digits, num_prompts, window, stride, statistics, logit_scale: see `clip_ebc`.
        count_loss: "dmcount", "mae" or "mse".
        count_weight: of the count loss beside the cross-entropy.
        as_published: the loss as the authors' code has it, see `ovseg.training.count_losses`.
        dtype: "float32"; mixed precision is `--amp`.
        head: what a command line asks of a segmentation head. There is none, so only what is off passes.
        options: of `TrainableModel`.
    """

    task = "count"

    def __init__(
        self,
        *,
        bins: Mapping[str, Any],
        encoder: str | None = None,
        weights: str | None = None,
        singular: str = "person",
        plural: str = "people",
        digits: bool = False,
        num_prompts: int = 32,
        window: int | None = 224,
        stride: int | None = None,
        statistics: str = "imagenet",
        logit_scale: float = 1 / 0.07,
        count_loss: CountLoss = "dmcount",
        count_weight: float = 1.0,
        as_published: bool = False,
        dtype: str = "float32",
        head: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if asked := [key for key, value in plain(head or {}).items() if value]:
            raise ConfigError(f"a trained counter has no class for every pixel, and so no {', '.join(asked)}")
        if dtype != "float32":
            raise ConfigError(f"a trained counter computes in float32, got dtype '{dtype}'")
        if statistics not in ("imagenet", "own"):
            raise ConfigError(f"statistics are 'imagenet' or the encoder's 'own', got '{statistics}'")
        loaded = load_clip(encoder or default_encoder(), weights=None if weights is None else Path(weights))
        self.counter = clip_ebc(
            loaded,
            build_bins(bins),
            singular=singular,
            plural=plural,
            digits=digits,
            num_prompts=num_prompts,
            window=window,
            stride=stride,
            statistics="own" if statistics == "own" else "imagenet",
            logit_scale=logit_scale,
        )
        self.names = tuple(dict.fromkeys((singular, plural)))
        self.notice = loaded.notice
        self.count_loss, self.count_weight, self.as_published = count_loss, count_weight, as_published
        tower: Any = self.counter.encode
        self.encoder = tower if isinstance(tower, ClipResNet) else tower.encoder
        self.freeze()

    def trained(self) -> Sequence[str]:
        """The head, and of the tower its prompts (ViT) or its stages (ResNet)."""
        encode: Any = self.counter.encode
        if isinstance(encode, ClipResNet):
            stages = (f"counter.encode.visual.{name}" for name in ClipResNet.STAGES)
            return (*stages, "counter.head")
        prompts = () if encode.prompts is None else ("counter.encode.prompts",)
        return (*prompts, "counter.head")

    def loss(self, inputs: Sequence[Tensor], data_samples: Sequence[Any] | None) -> dict[str, Tensor]:
        """DACE: `loss_dace`, and its terms.

        Raises:
            ConfigError: no dots, or images of several sizes.
        """
        if data_samples is None:
            raise ConfigError("a counter learns from dots: the pipeline ends with PackCounts")
        image = rgb_batch(inputs)
        blocks = self.counter.head(self.counter.encode(image))
        points = [sample.gt_points.to(image.device) for sample in data_samples]
        with torch.autocast(image.device.type, enabled=False):  # transport needs float32's digits
            loss, terms = dace_loss(
                blocks.logits.float(),
                blocks.density.float(),
                points,
                self.counter.head.bins,
                count_loss=self.count_loss,
                weight=self.count_weight,
                as_published=self.as_published,
            )
        return {"loss_dace": loss, **terms}

    def predict(self, inputs: Sequence[Tensor], data_samples: Sequence[Any] | None) -> list[Any]:
        """Samples with `pred_count`, a `ClassCount`; the images at their own size."""
        if data_samples is None:
            raise ConfigError("a counter predicts for data samples: the pipeline ends with PackCounts")
        return super().predict(inputs, data_samples)

    def results(self, images: Sequence[np.ndarray], samples: Sequence[Any]) -> list[ClassCount]:
        """How many in each image."""
        return [each.of(self.task).classes[0] for each in self.ask(images, [self.names[0]])]

    def pack(self, sample: Any, result: ClassCount) -> Any:
        """The sample with `pred_count`."""
        sample.pred_count = result
        return sample

    def draw(self, packed: Tensor, sample: Any) -> Image.Image:
        """The picture that `--show-dir` keeps: see `draw_counted`."""
        return draw_counted(packed, sample)

    def predictor(self) -> CountInferencer:
        """The counter with what was trained."""
        about = {
            "encoder": self.encoder.name,
            "weights_sha256": self.encoder.weights_sha256,
            "parts": {"counter": self.provenance},
            "dtype": "float32",
        }
        return CountInferencer(self.counter, self.names, about=about, notice=self.notice)
