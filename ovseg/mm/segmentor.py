"""The model that mmengine's Runner tests: data samples in, the core's `Inferencer`, data samples out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, PixelData
from mmseg.structures import SegDataSample
from torch import Tensor

from ovseg.errors import ConfigError
from ovseg.mm.build import build_inferencer, build_vocabulary, plain
from ovseg.mm.registry import MODELS
from ovseg.results import Segmentation
from ovseg.text.vocabulary import Vocabulary


@MODELS.register_module()
class OvSegmentor(BaseModel):
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
        self.inferencer = build_inferencer(
            method, encoder=encoder, weights=weights, head=head, device="cpu", dtype=dtype
        )
        # The same objects, known to torch: the Runner moves the model with `.to(device)`.
        self.scorer = self.inferencer.scorer
        self.text_encoder = self.inferencer.text_encoder
        self.head = self.inferencer.head
        self.eval()

    def forward(
        self,
        inputs: Sequence[Tensor],
        data_samples: Sequence[SegDataSample] | None = None,
        mode: str = "tensor",
    ) -> list[SegDataSample] | list[Tensor]:
        """What mmengine calls.

        Args:
            inputs: images as pipelines pack them, `(3, H, W)` uint8 in BGR; sizes may differ.
            data_samples: one per image; `predict` fills them and hands them back.
            mode: "predict" for data samples, "tensor" for labels `(1, H, W)`. There is no "loss".

        Raises:
            ConfigError: training was asked for, or the pipeline has resized the images.
        """
        if mode == "loss":
            raise ConfigError(
                "OvSegmentor holds a training-free method and has no loss: test it (tools/test.py CONFIG)"
            )
        if mode not in ("predict", "tensor"):
            raise ConfigError(f"mode must be 'predict' or 'tensor', got '{mode}'")
        samples = list(data_samples) if data_samples is not None else [SegDataSample() for _ in inputs]
        check_not_resized(samples)
        images = [to_rgb(each) for each in inputs]
        results = list(
            self.inferencer(images, self.vocabulary, batch_size=len(images), templates=self.templates)
        )
        if mode == "tensor":
            return [torch.from_numpy(result.labels.astype(np.int64))[None] for result in results]
        return [pack(sample, result) for sample, result in zip(samples, results, strict=True)]


def to_rgb(packed: Tensor) -> np.ndarray:
    """A packed `(3, H, W)` BGR image as the core takes it, `(H, W, 3)` RGB."""
    if packed.dtype != torch.uint8 or packed.ndim != 3 or packed.shape[0] != 3:
        raise ConfigError(
            f"expected images as bytes (3, H, W), got {packed.dtype} {tuple(packed.shape)}: the pipeline and "
            f"the data preprocessor must not normalise, pad or stack them"
        )
    return np.ascontiguousarray(packed.flip(0).permute(1, 2, 0).cpu().numpy())


def check_not_resized(samples: Sequence[BaseDataElement]) -> None:
    """Raises ConfigError where a pipeline has changed an image's size."""
    for sample in samples:
        now, before = sample.get("img_shape"), sample.get("ori_shape")
        if now is not None and before is not None and tuple(now[:2]) != tuple(before[:2]):
            raise ConfigError(
                f"the pipeline resized an image from {tuple(before[:2])} to {tuple(now[:2])} (HxW): take "
                f"Resize out of it, the method resizes by itself (method=dict(short_side=...))"
            )


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
