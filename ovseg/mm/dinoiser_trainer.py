"""CLIP-DINOiser's two convolutions, trained from unlabelled images under the Runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.found import FoundEncoder
from ovseg.errors import ConfigError
from ovseg.inferencer import Inferencer
from ovseg.methods.clip_dinoiser import DinoiserConvolutions, clip_dinoiser
from ovseg.mm.build import build_vocabulary, plain
from ovseg.mm.registry import MODELS
from ovseg.mm.trainable import TrainableModel, rgb_batch
from ovseg.parts import load_parts
from ovseg.scorer import Scorer
from ovseg.training.dinoiser import dinoiser_losses, prepare_lesson


@MODELS.register_module()
class DinoiserTrainer(TrainableModel):
    """The convolutions learn from DINO (which patches belong together) and FOUND (where any object is).

    Pipelines crop images to one size, a multiple of the tower's patch; no labels are asked. It predicts as
    `clip-dinoiser` does, with the convolutions as they are.

    Args:
        encoder: the CLIP that the convolutions belong to.
        guide: its last block's values are correlated.
        saliency: FOUND's weights.
        hidden: channels of the correlation features.
        similar: cosine of the guide's values from which patches belong together (gamma in the paper).
        method: options of `clip-dinoiser` for prediction; its `tap` is that of the training.
        vocabulary, templates, head: of the prediction, as in `OvSegmentor`.
        dtype: of the towers in prediction.
        options: of `TrainableModel`.
    """

    def __init__(
        self,
        *,
        encoder: str | None = None,
        guide: str = "dino_vitb16",
        saliency: str = "found_vits8",
        hidden: int = 256,
        similar: float = 0.2,
        method: Mapping[str, Any] | None = None,
        vocabulary: Any = None,
        templates: str | Sequence[str] = "imagenet80",
        head: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.vocabulary = None if vocabulary is None else build_vocabulary(vocabulary)
        self.templates = plain(templates)
        self.similar, self.dtype = similar, dtype

        def build(tower: ClipEncoder, **given: Any) -> Scorer:
            visual: Any = tower.visual
            return clip_dinoiser(tower, DinoiserConvolutions(visual.conv1.out_channels, hidden), **given)

        build.__name__ = "clip-dinoiser"
        reading = plain(head or {})
        self.use(
            Inferencer(build, encoder=encoder, device="cpu", dtype=dtype, **reading, **plain(method or {}))
        )
        self.encoder = self.scorer.encoder
        parts: Any = load_parts({"guide": guide, "saliency": saliency})
        if not isinstance(parts["guide"], DinoEncoder) or not isinstance(parts["saliency"], FoundEncoder):
            raise ConfigError(f"guide '{guide}' and saliency '{saliency}' must be a DINO and FOUND's decoder")
        self.guide = parts["guide"].with_kind("v")
        self.saliency = parts["saliency"]
        self.freeze()

    def trained(self) -> Sequence[str]:
        """Both convolutions."""
        return ("scorer.convolutions",)

    def loss(self, inputs: Sequence[Tensor], data_samples: Any = None) -> dict[str, Tensor]:
        """Of all pairs of patches, and of all patches.

        Raises:
            ConfigError: towers of another precision, or images of several sizes.
        """
        if self.dtype != "float32":
            raise ConfigError(f"model.dtype {self.dtype} is for prediction: train with --amp instead")
        image = rgb_batch(inputs)
        lesson = prepare_lesson(
            image,
            self.encoder,
            self.guide,
            self.saliency,
            tap=self.scorer.tap,
            threshold=self.similar,
            positions=self.scorer.positions,
        )
        pairs, patches = dinoiser_losses(self.scorer.convolutions, lesson)
        return {"loss_pairs": pairs, "loss_objects": patches}

    def predictor(self) -> Inferencer:
        """`clip-dinoiser` with what was trained."""
        self.inferencer.parts["convolutions"] = self.provenance
        return self.inferencer
