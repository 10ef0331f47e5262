"""The model that mmengine's Runner tests: data samples in, the core's `Inferencer`, data samples out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

from ovseg.mm.build import build_inferencer, build_vocabulary, plain
from ovseg.mm.core_model import CoreModel
from ovseg.mm.registry import MODELS
from ovseg.results import Segmentation
from ovseg.text.vocabulary import Vocabulary


@MODELS.register_module()
class OvSegmentor(CoreModel):
    """A training-free method under the Runner. Its answers are the `Inferencer`'s, to the last pixel.

    Pipelines load images and annotations and pack them, nothing else: no Resize, no normalisation. The
    scorer resizes by itself (`short_side`), and labels come back at the image's own size, the size of the
    annotation.

    Void: where no class is likely enough and the vocabulary has no background, `pred_sem_seg` holds the void
    label (255, or 65535 from 256 classes on). `IoUMetric` counts such a pixel as missed, for no class as
    found. Pixels whose annotation is 255 are left out, and a dataset's `reduce_zero_label` makes its label 0
    such a pixel and shifts the rest; both belong to the dataset, not to the model.

    mmseg's `BaseSegmentor` asks for features, a decode head and losses that a training-free method does not
    have, so the base is mmengine's `BaseModel`; `test_step`, `predict` and the data samples are the same.

    Args:
        method: `dict(type="sclip", temperature=65.0)`, a published method with options, or
            `dict(type="Scorer", correlation=dict(type="SelfCorrelation", parts=("q",)), residual=False)`,
            one of your own.
        vocabulary: the classes, in the order of the dataset's labels: the name of a shipped list, or
            anything else that `ovseg.mm.build.build_vocabulary` takes.
        encoder, weights, dtype: see `ovseg.Inferencer`.
        templates: prompt templates, see `ovseg.text.templates.load_templates`.
        head: `dict(threshold=0.1, area_threshold=0.1)`, options of `SegmentationHead`.
        data_preprocessor: by default mmengine's plain one, which moves data and changes nothing.
    """

    sample_type = SegDataSample

    def __init__(
        self,
        method: str | Mapping[str, Any],
        vocabulary: Any,
        *,
        encoder: str | None = None,
        weights: str | None = None,
        templates: str | Sequence[str] = "imagenet80",
        head: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.vocabulary = build_vocabulary(vocabulary)
        self.templates = plain(templates)
        self.use(
            build_inferencer(method, encoder=encoder, weights=weights, head=head, device="cpu", dtype=dtype)
        )
        self.head = self.inferencer.head
        self.eval()

    def pack(self, sample: SegDataSample, result: Segmentation) -> SegDataSample:
        """The sample with `pred_sem_seg` and `confidence`."""
        return pack(sample, result)

    def unpacked(self, result: Segmentation) -> Tensor:
        """Labels `(1, H, W)`."""
        return torch.from_numpy(result.labels.astype(np.int64))[None]


def pack(sample: SegDataSample, result: Segmentation) -> SegDataSample:
    """The sample with `pred_sem_seg`, class indices `(1, H, W)`, and `confidence`, their probabilities."""
    sample.pred_sem_seg = PixelData(data=torch.from_numpy(result.labels.astype(np.int64))[None])
    sample.set_field(PixelData(data=torch.from_numpy(result.confidence)[None]), "confidence", dtype=PixelData)
    return sample


def unpack(sample: SegDataSample, vocabulary: Vocabulary, void: int) -> Segmentation:
    """The inverse of `pack`."""
    return Segmentation(
        labels=sample.pred_sem_seg.data[0].cpu().numpy(),
        names=vocabulary.names,
        confidence=sample.get("confidence").data[0].cpu().numpy(),
        background=vocabulary.background,
        colors=vocabulary.colors,
        void=void,
    )
