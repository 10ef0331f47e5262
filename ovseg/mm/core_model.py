"""What every model under mmengine shares: packed images become one question to the core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor

from ovseg.answers import Answers, Task
from ovseg.batch import BatchPredictor
from ovseg.errors import ConfigError
from ovseg.inferencer import Inferencer


class CoreModel(BaseModel):
    """A model whose answers are the core's, asked through `ovseg.batch.BatchPredictor` as everywhere.

    A subclass gives

    - `predictor()`: what is asked; by default the inferencer of `use`;
    - `pack(sample, result)`: a data sample with the core's result;
    - `unpacked(result)`: what the mode "tensor" hands out; by default the result;
    - `results(images, samples)`, where images are asked for different words.

    Attributes:
        task: what is asked.
        vocabulary: the classes, or None.
        templates: prompt templates.
        sample_type: of data samples, where a pipeline brings none.
    """

    task: Task = "segment"
    vocabulary: Any = None
    templates: Any = "imagenet80"
    sample_type: type[BaseDataElement] = BaseDataElement
    inferencer: Any = None

    def use(self, inferencer: Inferencer) -> None:
        """Takes an inferencer; its networks become known to torch, as the Runner moves models by `.to`."""
        self.inferencer = inferencer
        self.scorer: Any = inferencer.scorer
        self.text_encoder = inferencer.text_encoder

    def predictor(self) -> Any:
        """What `tools/infer.py` asks."""
        return self.inferencer

    def pack(self, sample: Any, result: Any) -> Any:
        """The data sample with a result of the core."""
        raise NotImplementedError

    def unpacked(self, result: Any) -> Any:
        """A result without data sample."""
        return result

    def forward(
        self, inputs: Sequence[Tensor], data_samples: Sequence[Any] | None = None, mode: str = "tensor"
    ) -> Any:
        """What mmengine calls.

        Args:
            inputs: images as pipelines pack them, `(3, H, W)` uint8 in BGR; sizes may differ.
            data_samples: one per image; `predict` fills them and hands them back.
            mode: "predict" for data samples, "tensor" for bare results. There is no "loss".

        Raises:
            ConfigError: training was asked for, or the pipeline has resized the images.
        """
        if mode == "loss":
            raise ConfigError(
                f"{type(self).__name__} holds a training-free method and has no loss: test it "
                f"(tools/test.py CONFIG)"
            )
        if mode not in ("predict", "tensor"):
            raise ConfigError(f"mode must be 'predict' or 'tensor', got '{mode}'")
        if mode == "predict":
            return self.predict(inputs, data_samples)
        return [self.unpacked(result) for _, result in self._asked(inputs, data_samples)]

    def predict(self, inputs: Any, data_samples: Sequence[Any] | None) -> list[Any]:
        """Data samples with the core's results; the images at their own size."""
        return [self.pack(sample, result) for sample, result in self._asked(inputs, data_samples)]

    def _asked(self, inputs: Any, data_samples: Sequence[Any] | None) -> list[tuple[Any, Any]]:
        samples = list(data_samples) if data_samples is not None else [self.sample_type() for _ in inputs]
        check_not_resized(samples)
        images = [to_rgb(each) for each in inputs]
        return list(zip(samples, self.results(images, samples), strict=True))

    def results(self, images: Sequence[np.ndarray], samples: Sequence[Any]) -> list[Any]:
        """The core's result for each image, RGB: that of the task."""
        return [each.of(self.task) for each in self.ask(images, self.vocabulary)]

    def ask(
        self, images: Sequence[np.ndarray], words: Any, paths: Sequence[str | None] | None = None
    ) -> list[Answers]:
        """The core's answers.

        Args:
            images: RGB.
            words: the classes.
            paths: where each image lies, for a predictor that wants to know.
        """
        predict = BatchPredictor(
            self.predictor(),
            words,
            tasks=(self.task,),
            templates=self.templates,
            names=paths is not None,
        )
        return predict.ask(images, paths)


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
