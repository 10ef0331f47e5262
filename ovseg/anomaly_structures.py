"""What zero-shot anomaly methods take and give. Axis letters as in `ovseg.structures`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovseg.errors import ShapeError
from ovseg.structures import TextBank

NORMAL, ABNORMAL = 0, 1


@dataclass(frozen=True)
class AnomalyScores:
    """How anomalous an image is, and where.

    Attributes:
        map: in [0, 1], higher is more anomalous `(B, h, w)`; on the patch grid or at the image's size.
        score: of the whole image, in [0, 1] `(B,)`.
        align_corners: how the method brings its map to another size: grid corners on image corners (AnoVL) or
            not (all others).
    """

    map: Float[Tensor, "B h w"]
    score: Float[Tensor, " B"]
    align_corners: bool = False

    def resized(self, size_hw: tuple[int, int]) -> AnomalyScores:
        """The same with a map of `size_hw` pixels, bilinear."""
        if size_hw == tuple(self.map.shape[1:]):
            return self
        resized = F.interpolate(self.map[:, None], size_hw, mode="bilinear", align_corners=self.align_corners)
        return replace(self, map=resized[:, 0])


@dataclass(frozen=True)
class StateBank:
    """One thing in two states, normal (0) and abnormal (1), as text.

    Attributes:
        states: a row per state: the mean of its prompts' embeddings, unit length.
        prompts: a row per prompt, unit length, those of the normal state first.
    """

    states: Float[Tensor, "2 D"]
    prompts: Float[Tensor, "M D"]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> StateBank:
        """On another device, in another dtype."""
        return StateBank(self.states.to(device, dtype), self.prompts.to(device, dtype))

    @property
    def text_bank(self) -> TextBank:
        """The two states as classes, for anything that reads a `TextBank`."""
        owner = torch.arange(2, device=self.states.device)
        return TextBank(self.states, owner, ("normal", "abnormal"))

    def logits(self, features: Float[Tensor, "*lead D"], temperature: float) -> Float[Tensor, "*lead 2"]:
        """`temperature * cosine` of features of any length with the two states, float32.

        Raises:
            ShapeError: text and features are not of the same model.
        """
        if features.shape[-1] != self.states.shape[-1]:
            raise ShapeError(
                f"text has {self.states.shape[-1]} dimensions and the image {features.shape[-1]}: encode the "
                f"prompts with the text tower of the same model"
            )
        states = self.states.to(features.device, torch.float32)
        return temperature * F.normalize(features.float(), dim=-1) @ states.T

    def probabilities(
        self, features: Float[Tensor, "*lead D"], temperature: float
    ) -> Float[Tensor, "*lead 2"]:
        """Softmax over the two states. See `logits`."""
        return self.logits(features, temperature).softmax(dim=-1)
