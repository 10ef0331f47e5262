"""The counter that mmengine's Runner tests: data samples in, the core's `Inferencer`, data samples out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import Tensor

from ovseg.counting_results import ClassCount, Counts
from ovseg.errors import ConfigError
from ovseg.heads.counting import CountingHead
from ovseg.mm.build import build_inferencer, build_vocabulary, plain
from ovseg.mm.core_model import CoreModel, to_rgb
from ovseg.mm.registry import MODELS
from ovseg.outputs.drawing import count_overlay
from ovseg.tasks import TaskHeads


@MODELS.register_module()
class OvCounter(CoreModel):
    """A training-free method that counts on its score map, as `tools/infer.py --task count` does.

    Each image is asked for the name that its data sample carries. Pipelines load and pack images, nothing
    else: no Resize, no normalisation.

    Args:
        method, encoder, weights, templates, dtype: as in `OvSegmentor`.
        vocabulary: classes that all images are asked for together, so that a thing can be none of the one
            that is counted; every sample's name must be among them. None asks each image for its name alone,
            against the background words.
        head: `dict(prominence=0.4)`, options of `CountingHead`.
        data_preprocessor: by default mmengine's plain one, which moves data and changes nothing.
        others: of `ovseg.Inferencer`: guide, sam, refine ...
    """

    task = "count"

    def __init__(
        self,
        method: str | Mapping[str, Any],
        *,
        vocabulary: Any = None,
        encoder: str | None = None,
        weights: str | None = None,
        templates: str | Sequence[str] = "imagenet80",
        head: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.vocabulary = None if vocabulary is None else build_vocabulary(vocabulary)
        self.templates = plain(templates)
        options = plain(head or {})
        if not options.get("keep_scores", True):
            del options["keep_scores"]  # a command line's, of segmentation: off, there is nothing to keep
        try:
            counting = CountingHead(**options)
        except TypeError as error:
            raise ConfigError(f"model.head: {error}") from error
        self.use(
            build_inferencer(
                method,
                encoder=encoder,
                weights=weights,
                device="cpu",
                dtype=dtype,
                heads=TaskHeads(count=counting),
                **others,
            )
        )
        self.heads = self.inferencer.heads
        self.eval()

    def forward(
        self,
        inputs: Sequence[Tensor],
        data_samples: Sequence[BaseDataElement] | None = None,
        mode: str = "tensor",
    ) -> list[BaseDataElement]:
        """What mmengine calls; every sample gets `pred_count`, a `ClassCount`.

        Args:
            inputs: images as pipelines pack them, `(3, H, W)` uint8 in BGR; sizes may differ.
            data_samples: one per image, with a `name`.
            mode: "predict". There is no "loss".

        Raises:
            ConfigError: training was asked for, a sample has no name, or the pipeline has resized the images.
        """
        if mode != "predict" or data_samples is None:
            raise ConfigError(
                f"OvCounter holds a training-free method that predicts for data samples, it was asked for "
                f"mode '{mode}': test it (tools/test.py CONFIG)"
            )
        return super().forward(inputs, data_samples, mode)

    def results(self, images: Sequence[np.ndarray], samples: Sequence[BaseDataElement]) -> list[ClassCount]:
        """How many of what each sample names."""
        return [self._count(image, each.get("name")) for image, each in zip(images, samples, strict=True)]

    def pack(self, sample: BaseDataElement, result: ClassCount) -> BaseDataElement:
        """The sample with `pred_count`."""
        sample.pred_count = result
        return sample

    def draw(self, packed: Tensor, sample: BaseDataElement) -> Image.Image:
        """The picture that `--show-dir` keeps: see `draw_counted`."""
        return draw_counted(packed, sample)

    def _count(self, image: np.ndarray, name: str | None) -> ClassCount:
        if not name:
            raise ConfigError("a data sample has no name of what is to be counted: see PackCounts")
        words = [name] if self.vocabulary is None else self.vocabulary
        if self.vocabulary is not None and name not in self.vocabulary.names:
            raise ConfigError(f"model.vocabulary has no '{name}', which an image is to be counted for")
        (answer,) = self.ask([image], words)
        return answer.of("count")[name]


def draw_counted(packed: Tensor, sample: BaseDataElement) -> Image.Image:
    """A packed image with what was counted in it: points, or the density where there are none."""
    image = to_rgb(packed)
    return count_overlay(image, Counts((sample.pred_count,), image.shape[:2]))
