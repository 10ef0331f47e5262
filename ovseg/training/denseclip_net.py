"""DenseCLIP's towers as one network: a CLIP with a pyramid, class names, and what compares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ovseg.encoders.clip_loading import LoadedClip
from ovseg.encoders.pyramid import build_pyramid
from ovseg.errors import CheckpointError
from ovseg.text.towers import ClipText, take_text_side
from ovseg.training.denseclip import PixelText, PixelTextMatching, name_tokens


class DenseClipNet(nn.Module):
    """Images and class names to a pyramid with a score map.

    The text tower is frozen and no part of the state dict: whoever loads it names the same CLIP.

    Args:
        clip: the CLIP; its image tower is taken over and may be trained.
        names: the classes.
        matching: options of `PixelTextMatching`.
        pyramid: options of `build_pyramid`.

    Raises:
        CheckpointError: the CLIP's text tower is not the kind that takes learned prompts.
        VocabularyError: a class name is too long.
    """

    tokens: Tensor
    mean: Tensor
    std: Tensor
    text: ClipText

    def __init__(
        self,
        clip: LoadedClip,
        names: Sequence[str],
        *,
        matching: Mapping[str, Any] | None = None,
        pyramid: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.weights_sha256 = clip.name, clip.weights_sha256
        self.tokenizer, self.context_length = clip.tokenizer, clip.context_length
        text = take_text_side(clip.model).eval().requires_grad_(False)
        if not isinstance(text, ClipText) or not isinstance(text.text_projection, nn.Parameter):
            raise CheckpointError(
                f"learned contexts need CLIP's own text tower, and {clip.name} has another: use one of "
                f"OpenAI's CLIPs, such as RN50-quickgelu:openai"
            )
        self.__dict__["text"] = text  # not a submodule: neither trained nor saved
        self.backbone = build_pyramid(clip.model.visual, **(pyramid or {}))
        width, joint_dim = text.text_projection.shape
        self.matching = PixelTextMatching(width, joint_dim, **(matching or {}))
        self.register_buffer("mean", torch.tensor(clip.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(clip.std).view(3, 1, 1), persistent=False)
        self.names = tuple(names)
        self.register_buffer("tokens", self.tokens_of(self.names), persistent=False)
        self.requires_grad_(True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DenseClipNet:
        """Moves the text tower along."""
        self.text._apply(fn)
        return super()._apply(fn, recurse)

    @property
    def channels(self) -> list[int]:
        """Of the levels that a neck takes, the score map's included."""
        extra = [len(self.names) if level == self.backbone.dense_level else 0 for level in range(4)]
        return [own + more for own, more in zip(self.backbone.channels, extra, strict=True)]

    def tokens_of(self, names: Sequence[str]) -> Int[Tensor, "K L"]:
        """Tokens of class names.

        Raises:
            VocabularyError: a name is too long.
        """
        contexts = self.matching.contexts
        tokens = name_tokens(
            self.tokenizer, names, context_length=self.context_length, contexts=contexts.shape[1]
        )
        return tokens.to(contexts.device)

    def normalise(self, rgb: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """RGB in [0, 1] as the image tower takes it."""
        return (rgb - self.mean) / self.std

    def encode(self, tokens: Int[Tensor, "K L"] | None = None) -> Float[Tensor, "1 K D"] | None:
        """See `PixelTextMatching.encode`; by default of the own classes."""
        return self.matching.encode(self.text, self.tokens if tokens is None else tokens)

    def forward(
        self,
        pixels: Float[Tensor, "B 3 H W"],
        tokens: Int[Tensor, "K L"] | None = None,
        encoded: Float[Tensor, "1 K D"] | None = None,
    ) -> PixelText:
        """Compares images with class names.

        Args:
            pixels: normalised; sides are multiples of `backbone.multiple`.
            tokens: of other names than the own.
            encoded: what `encode` gave, where it is known already.
        """
        return self.matching(
            self.backbone(pixels),
            self.text,
            self.tokens if tokens is None else tokens,
            dense_level=self.backbone.dense_level,
            encoded=encoded,
        )
