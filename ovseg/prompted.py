"""An `Inferencer` whose words follow a learned context instead of templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ovseg.inferencer import Inferencer
from ovseg.structures import TextBank
from ovseg.text.context import LearnedContext
from ovseg.text.vocabulary import Vocabulary
from ovseg.wording import KeptBanks


class PromptedInferencer(Inferencer):
    """Another inferencer with all its networks, and other words: any, after the context.

    Args:
        inferencer: whose method, weights and heads are shared.
        context: it may still be changing: words are encoded anew when it has.
        source: where the context is from, for manifests.
    """

    def __init__(
        self, inferencer: Inferencer, context: LearnedContext, source: Mapping[str, Any] | None = None
    ) -> None:
        self.__dict__.update(inferencer.__dict__)  # all is loaded: nothing is to be built again
        self.context = context
        self.source = dict(source or {})
        self._banks = KeptBanks()

    def bank(
        self, classes: Any, templates: str | Sequence[str] = "imagenet80"
    ) -> tuple[Vocabulary, TextBank]:
        """Words after the context, encoded once; `templates` are not used: the context is in their place."""
        vocabulary = Vocabulary.parse(classes)
        if vocabulary.prototypes is not None:
            vocabulary.prototypes.check(self.describe())

        @torch.no_grad()
        def encode() -> TextBank:
            return self.context(self.text_encoder, vocabulary).to(self.device, torch.float32)

        return vocabulary, self._banks.get((vocabulary.fingerprint(), self.context.sha256), encode)

    def describe(self) -> dict[str, Any]:
        """All that changes results, with the context among the parts."""
        found = super().describe()
        found["parts"] = found["parts"] | {"context": self.source | {"sha256": self.context.sha256}}
        return found
