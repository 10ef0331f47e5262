"""From words to what features are compared with: banks for every task, the latest ones kept."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from ovseg.no_tower import NoTower, load_no_tower
from ovseg.structures import TextBank
from ovseg.text.encoder import OnLong, TextEncoder
from ovseg.text.enrichment import encode_attributes, enrich_bank
from ovseg.text.states import anomaly_bank
from ovseg.text.templates import TemplateSpec
from ovseg.text.vocabulary import Vocabulary

#: What is said of an attribute.
ATTRIBUTE_TEMPLATES = ("a photo of something that is {}", "a photo of a {} thing")
#: Encoded vocabularies that are kept.
BANKS_KEPT = 8


class Wording:
    """A text encoder with all that changes words on their way.

    Args:
        encoder: on its device.
        descriptions: what `ovseg.text.enrichment.read_descriptions` gave, or None.
        no_tower: a checkpoint of CLIPN, see `ovseg.no_tower`.
        attributes: a second vocabulary.
        on_long: a prompt longer than the model's context is an "error", or is cut ("truncate").
        cache: folder for encoded words; None is the user's cache folder.

    Raises:
        CheckpointError, ConfigError, VocabularyError: a file is not what it should be.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        *,
        descriptions: Any = None,
        no_tower: str | Path | None = None,
        attributes: Any = None,
        on_long: OnLong = "error",
        cache: str | Path | None = None,
    ) -> None:
        self.encoder = encoder
        self.descriptions = descriptions
        self._enrichment = (
            None if self.descriptions is None else encode_attributes(encoder, self.descriptions)
        )
        self.no_tower: NoTower | None = None if no_tower is None else load_no_tower(no_tower, encoder)
        self.attributes = None if attributes is None else Vocabulary.parse(attributes)
        self.on_long: OnLong = on_long
        self.cache = None if cache is None else Path(cache)
        self.banks = KeptBanks()

    def describe(self) -> dict[str, Any]:
        """All that changes words, JSON-ready."""
        return {
            "enrich": self.descriptions,
            "on_long": self.on_long,
            **({} if self.no_tower is None else {"no_tower_sha256": self.no_tower.weights_sha256}),
            **({} if self.attributes is None else {"attributes": self.attributes.to_dict()}),
        }

    def bank(self, vocabulary: Vocabulary, templates: TemplateSpec = "imagenet80") -> TextBank:
        """Classes, encoded once."""

        def encode() -> TextBank:
            given: dict[str, Any] = {"cache_dir": self.cache, "on_long": self.on_long}
            bank = self.encoder.bank(vocabulary, templates, **given)
            if self._enrichment is not None:
                bank = enrich_bank(bank, self._enrichment.to(bank.embeddings.device))
            if self.no_tower is not None:
                bank = self.no_tower.attach(bank, vocabulary, templates, **given)
            return bank

        named = templates if isinstance(templates, str | Path) else tuple(templates)
        return self._kept((vocabulary.fingerprint(), named), encode)

    def states(self, bank: TextBank) -> TextBank:
        """The things that are named, in order and out of order."""
        objects: Collection[str] = [name for k, name in enumerate(bank.names) if k not in bank.background]
        return self._kept(
            ("states", *objects), lambda: anomaly_bank(self.encoder, tuple(objects), on_long="truncate")
        )

    def described(self) -> TextBank | None:
        """The attributes, encoded."""
        return None if self.attributes is None else self.bank(self.attributes, ATTRIBUTE_TEMPLATES)

    def _kept(self, key: tuple, encode: Callable[[], TextBank]) -> TextBank:
        return self.banks.get(key, lambda: encode().to(self.encoder.device, torch.float32))


class KeptBanks:
    """The banks that were asked for last, by key."""

    def __init__(self) -> None:
        self._banks: dict[tuple, TextBank] = {}

    def get(self, key: tuple, make: Callable[[], TextBank]) -> TextBank:
        """The bank of that key, made where it is not kept."""
        bank = self._banks.pop(key, None) or make()
        self._banks[key] = bank
        while len(self._banks) > BANKS_KEPT:
            del self._banks[next(iter(self._banks))]
        return bank
