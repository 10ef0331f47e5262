"""A mask-adapted CLIP, trained on crops of regions under the Runner."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovseg.encoders.checkpoints import load_checkpoint, sha256_of
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.mask_prompt import MaskPromptedClip
from ovseg.encoders.weights import BUNDLED
from ovseg.errors import CheckpointError, ConfigError, unknown_name
from ovseg.heads.regions import RegionHead
from ovseg.inferencer import Inferencer
from ovseg.masked_look import MaskedLook
from ovseg.mm.build import build_vocabulary, plain
from ovseg.mm.registry import MODELS
from ovseg.mm.trainable import META, TrainableModel
from ovseg.region_route import RegionRoute, build_proposals
from ovseg.text.vocabulary import Vocabulary
from ovseg.training.mask_prompt import pair_loss

#: What learns: the prompts (the published second stage), the image tower (the first), or both at once.
Learns = Literal["prompts", "tower", "both"]
_PARTS = {"prompts": ("crops.prompts",), "tower": ("crops.encoder.visual",)}


@MODELS.register_module()
class MaskPromptTrainer(TrainableModel):
    """Crops of regions against their nouns. What it answers with names boxes by dense features and crops.

    The tower that reads crops is a copy wherever it learns: dense features stay those of CLIP as it was.

    Args:
        encoder: the CLIP that is adapted.
        learns: see `Learns`.
        tower: a checkpoint of a run in which the tower learned, which this one begins from.
        depth, crop_px: see `MaskPromptedClip`; crops of the pipeline are of that size.
        scale: logits of the loss are `scale * cosine`.
        distinct: as published every region of a batch has one right text, its own; False takes equal nouns
            for right, too.
        method: `dict(type="naclip", ...)`, whose dense features are the other half.
        vocabulary: the classes of validation and test.
        templates: of nouns and classes.
        head: `threshold`, `area_threshold`, `keep_scores` of the segmentation head.
        regions: options of `RegionHead`, such as `crop_weight`.
        proposals: of what `predictor()` gives, see `ovseg.region_route.build_proposals`.
        dtype: of the towers in prediction.
        options: of `TrainableModel`.
    """

    def __init__(
        self,
        *,
        encoder: str | None = None,
        learns: Learns = "prompts",
        tower: str | None = None,
        depth: int = 3,
        crop_px: int | None = None,
        scale: float = 100.0,
        distinct: bool = False,
        method: Mapping[str, Any] | None = None,
        vocabulary: Any = None,
        templates: str | Sequence[str] = "imagenet80",
        head: Mapping[str, Any] | None = None,
        regions: Mapping[str, Any] | None = None,
        proposals: Any = "sam",
        dtype: str = "float32",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if learns not in get_args(Learns):
            raise unknown_name("choice of what learns", learns, get_args(Learns))
        self.learns, self.scale, self.distinct, self.dtype = learns, scale, distinct, dtype
        self.vocabulary = None if vocabulary is None else build_vocabulary(vocabulary)
        self.templates = plain(templates)
        dense = {"type": "naclip", **plain(method or {}), **plain(head or {})}
        self.inferencer = Inferencer(dense.pop("type"), encoder=encoder, device="cpu", dtype=dtype, **dense)
        self.scorer: Any = self.inferencer.scorer
        self.text_encoder = self.inferencer.text_encoder
        self.encoder: ClipEncoder = self.scorer.encoder
        self.crops = MaskPromptedClip(self._crop_encoder(tower), depth=depth, crop_px=crop_px)
        self.head = RegionHead(**plain(regions or {}))
        self.proposals = plain(proposals)
        self._texts: dict[str, Tensor] = {}
        self.freeze()

    def _crop_encoder(self, tower: str | None) -> ClipEncoder:
        if self.learns == "prompts" and tower is None:
            return self.encoder
        visual = copy.deepcopy(self.encoder.visual)
        own = ClipEncoder(
            visual,
            mean=self.encoder.mean.flatten().tolist(),
            std=self.encoder.std.flatten().tolist(),
            name=self.encoder.name,
            weights_sha256=self.encoder.weights_sha256,
        ).eval()
        if tower is not None:
            _take_tower(own, tower, self.encoder)
        return own

    def describe(self) -> dict[str, Any]:
        """With the tower that the prompts belong to."""
        return super().describe() | {"tower_sha256": self.crops.encoder.weights_sha256, "learns": self.learns}

    def trained(self) -> Sequence[str]:
        """The prompts, the tower that reads crops, or both."""
        return _PARTS.get(self.learns, (*_PARTS["prompts"], *_PARTS["tower"]))

    def loss(self, inputs: Mapping[str, Sequence[Tensor]], data_samples: Any = None) -> dict[str, Tensor]:
        """CLIP's loss over the regions of all images of the batch.

        Raises:
            ConfigError: towers of another precision, or no region in the whole batch.
        """
        if self.dtype != "float32":
            raise ConfigError(f"model.dtype {self.dtype} is for prediction: train with --amp instead")
        nouns = [noun for sample in data_samples for noun in sample.nouns]
        if not nouns:
            raise ConfigError("a batch without a single region: leave images without annotations out")
        texts = self._encoded(nouns)
        known = {noun: place for place, noun in enumerate(dict.fromkeys(nouns))}
        same = None if self.distinct else torch.tensor([known[noun] for noun in nouns], device=texts.device)
        return {"loss_pairs": pair_loss(self._embed(inputs), texts, self.scale, same)}

    def _embed(self, inputs: Mapping[str, Sequence[Tensor]]) -> Float[Tensor, "B D"]:
        pixels = torch.cat(list(inputs["crops"])).flip(1).float() / 255
        masks = torch.cat(list(inputs["masks"]))
        return self.crops(pixels, None if self.learns == "tower" else masks)

    def _encoded(self, nouns: Sequence[str]) -> Float[Tensor, "B D"]:
        """Texts, each encoded once a run."""
        new = [noun for noun in dict.fromkeys(nouns) if noun not in self._texts]
        if new:
            embeddings = self.text_encoder.bank(Vocabulary.parse(new), self.templates).embeddings
            self._texts.update(zip(new, embeddings, strict=True))
        return torch.stack([self._texts[noun] for noun in nouns]).to(self.crops.prompts.device)

    def predict(self, inputs: Mapping[str, Sequence[Tensor]], data_samples: Any) -> list[Any]:
        """Data samples with `pred_labels`: by their crops alone, regions as the vocabulary's classes."""
        if self.vocabulary is None:
            raise ConfigError("MaskPromptTrainer has no vocabulary to predict: set model.vocabulary")
        _, bank = self.inferencer.bank(self.vocabulary, self.templates)
        cosine = F.normalize(self._embed(inputs).float(), dim=1) @ bank.embeddings.to(self.crops.prompts).T
        best = torch.stack([cosine[:, queries].amax(dim=1) for queries in bank.queries_of_class], dim=1)
        labels = best.argmax(dim=1).split([len(each.gt_labels) for each in data_samples])
        for sample, each in zip(data_samples, labels, strict=True):
            sample.pred_labels = each
        return list(data_samples)

    def predictor(self) -> RegionRoute:
        """All tasks; `detect` names proposals by dense features and masked crops."""
        self.inferencer.parts["crops"] = self.provenance
        bundled = self.encoder.name == BUNDLED
        look = MaskedLook(self.crops, prompted=self.learns != "tower")
        proposals = build_proposals(self.proposals, bundled=bundled)
        return RegionRoute(
            self.inferencer, proposals, head=self.head, crops=look, crop_px=self.crops.crop_hw[0]
        )


def _take_tower(own: ClipEncoder, file: str, encoder: ClipEncoder) -> None:
    """Weights of a tower that has learned on crops."""
    checkpoint = load_checkpoint(Path(file))
    says = dict(checkpoint.get("meta", {}).get(META, {}))
    prefix = f"{_PARTS['tower'][0]}."
    state = {
        name.removeprefix(prefix): value
        for name, value in checkpoint.get("state_dict", {}).items()
        if name.startswith(prefix)
    }
    if not state or says.get("weights_sha256") != encoder.weights_sha256:
        raise CheckpointError(
            f"{file} holds no tower of '{encoder.name}' that learned on crops: expected a checkpoint of a "
            f"run with learns='tower' or 'both' on the same encoder, it says {says}"
        )
    own.visual.load_state_dict(state)
    own.weights_sha256 = sha256_of(Path(file))
