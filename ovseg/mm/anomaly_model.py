"""The model that mmengine's Runner tests on anomaly benchmarks: data samples in, maps and scores out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from torch import Tensor

from ovseg.anomaly_build import ANOMALY_METHODS, build_anomaly_inferencer
from ovseg.anomaly_results import AnomalyMap
from ovseg.errors import ConfigError, unknown_name
from ovseg.heads.anomaly import AnomalyHead
from ovseg.methods import METHODS
from ovseg.methods.anomalyclip import ObjectPrompts
from ovseg.mm.build import build_inferencer, plain
from ovseg.mm.core_model import CoreModel, to_rgb
from ovseg.mm.registry import MODELS
from ovseg.outputs.heat_maps import anomaly_overlay


@MODELS.register_module()
class OvAnomalyDetector(CoreModel):
    """An anomaly method under the Runner; each image is inspected for its category.

    Data samples bring `category` and, for methods that compare with good images, `good` (the dataset's
    `shots`); a category is learned when its first image comes. They get `pred_anomaly_map`, `(1, H, W)` at
    the image's own size, and `pred_score`.

    Args:
        method: `dict(type="winclip", size=240)`, one of `ovseg.anomaly_build.ANOMALY_METHODS` with its
            options, or any segmentation method, whose score map then compares words of order and disorder
            ("generic" state prompts).
        encoder, weights, guide, dtype: see `build_anomaly_inferencer`.
        prompts: state prompts, or AnomalyCLIP's learned ones; see there. The latter may be the checkpoint
            that `tools/test.py` is given.
        names: what categories are called in words, where not by their own name ("pcb1": "circuit board").
        head: options of `AnomalyHead`: `sigma_px`, `image_score`.
        data_preprocessor: by default mmengine's plain one, which moves data and changes nothing.
    """

    #: Categories come with the images.
    vocabulary = None
    task = "anomaly"
    sample_type = SegDataSample

    def __init__(
        self,
        method: str | Mapping[str, Any],
        *,
        encoder: str | None = None,
        weights: str | None = None,
        guide: str | None = None,
        prompts: Any = None,
        names: Mapping[str, str] | None = None,
        head: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        data_preprocessor: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor)
        options = plain(dict(type=method) if isinstance(method, str) else method)
        self.method = options.pop("type", None)
        if self.method not in (*ANOMALY_METHODS, *METHODS):
            raise unknown_name("anomaly method", str(self.method), (*ANOMALY_METHODS, *METHODS))
        self.options = options | {"encoder": encoder, "weights": weights, "dtype": dtype}
        if guide is not None:
            self.options["guide"] = guide
        self.head = AnomalyHead(**plain(head or {}))
        self.sigma_px = plain(head or {}).get("sigma_px")
        self.names = plain(names or {})
        self._learned: tuple[str, int] | None = None
        if self.method != "anomalyclip" or prompts is not None:
            self.inferencer = self._build(plain(prompts))
        self.eval()

    def _build(self, prompts: Any) -> Any:
        if self.method in METHODS:
            if prompts is not None:
                raise ConfigError(
                    f"method '{self.method}' compares with the \"generic\" words, not with prompts"
                )
            made: Any = build_inferencer({"type": self.method}, **self.options)
            made.heads.anomaly = self.head
            return made
        made = build_anomaly_inferencer(self.method, prompts=prompts, sigma_px=self.sigma_px, **self.options)
        made.head.image_score = self.head.image_score
        return made

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Takes AnomalyCLIP's learned prompts, the only thing here that is trained.

        Raises:
            ConfigError: the method has nothing that is trained.
            CheckpointError: it holds no such prompts.
        """
        if self.method != "anomalyclip":
            raise ConfigError(f"'{self.method}' has nothing that is trained: leave the checkpoint out")
        self.inferencer = self._build(ObjectPrompts.from_state(state_dict).eval().requires_grad_(False))

    def predictor(self) -> Any:
        """What tools ask: see `ovseg.anomaly_inferencer.AnomalyInferencer`.

        Raises:
            ConfigError: AnomalyCLIP without its prompts.
        """
        if self.inferencer is None:
            raise ConfigError(
                "'anomalyclip' compares with learned prompts: name their checkpoint after the config, or say "
                "model.prompts=FILE"
            )
        return self.inferencer

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
            mode: "predict" for data samples, "tensor" for maps `(1, H, W)`. There is no "loss".

        Raises:
            ConfigError: another mode, resized images, or good images that are missing or of no use.
        """
        if mode not in ("predict", "tensor"):
            raise ConfigError(
                f"mode must be 'predict' or 'tensor', got '{mode}': the method is not trained here"
            )
        return super().forward(inputs, data_samples, mode)

    def results(self, images: Sequence[Any], samples: Sequence[SegDataSample]) -> list[AnomalyMap]:
        """The map of each image, for the thing that it shows."""
        return [self._one(image, sample) for image, sample in zip(images, samples, strict=True)]

    def pack(self, sample: SegDataSample, result: AnomalyMap) -> SegDataSample:
        """The sample with `pred_anomaly_map` and `pred_score`."""
        return pack(sample, result)

    def unpacked(self, result: AnomalyMap) -> Tensor:
        """The map, `(1, H, W)`."""
        return torch.from_numpy(result.map)[None]

    @staticmethod
    def draw(packed: Tensor, sample: SegDataSample) -> Image.Image:
        """The image under its map, for `OverlayHook`."""
        return anomaly_overlay(to_rgb(packed), unpack(sample))

    def _one(self, image: Any, sample: SegDataSample) -> AnomalyMap:
        category = sample.get("category", "object")
        name = self.names.get(category, category.replace("_", " "))
        good = sample.get("good", ())
        if good:
            self._learn(category, name, good)
        (answer,) = self.ask([image], name)
        return answer.of("anomaly")

    def _learn(self, category: str, name: str, good: Sequence[Any]) -> None:
        """Looks at a category's good images, once as long as images of it come in a row."""
        detector = getattr(self.predictor(), "detector", None)
        if detector is None or not detector.learns:
            raise ConfigError(
                f"'{self.method}' does not compare with good images: set test_dataloader.dataset.shots=0"
            )
        if self._learned != (category, len(good)):
            self.predictor().learn(list(good), name, threshold=False)
            self._learned = (category, len(good))


def pack(sample: SegDataSample, result: AnomalyMap) -> SegDataSample:
    """The sample with `pred_anomaly_map` and `pred_score`."""
    sample.set_field(PixelData(data=torch.from_numpy(result.map)[None]), "pred_anomaly_map", dtype=PixelData)
    sample.set_field(torch.tensor(result.score), "pred_score")
    return sample


def unpack(sample: SegDataSample) -> AnomalyMap:
    """The inverse of `pack`."""
    return AnomalyMap(sample.get("pred_anomaly_map").data[0].cpu().numpy(), float(sample.get("pred_score")))
