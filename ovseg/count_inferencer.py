"""A trained counter for users: images in, how many out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

import ovseg
from ovseg.answers import Answers, check_tasks
from ovseg.counting_results import Counts
from ovseg.errors import ConfigError, VocabularyError
from ovseg.heads.ebc import EbcCounter
from ovseg.images import in_batches
from ovseg.structures import TextBank
from ovseg.text.vocabulary import Vocabulary


class CountInferencer:
    """A counter that knows one kind of thing.

    Args:
        counter: trained.
        names: what it counts, as users may call it: ("person", "people").
        about: what `describe` says of how it was made.
        notice: what the encoder wants to be known of it, or None.
    """

    def __init__(
        self,
        counter: EbcCounter,
        names: Iterable[str],
        *,
        about: Mapping[str, Any] | None = None,
        notice: str | None = None,
    ) -> None:
        self.counter = counter.eval()
        self.names = tuple(names)
        self.about = dict(about or {})
        self.notice = notice

    @property
    def device(self) -> torch.device:
        """Where the tower is."""
        return self.counter.head.text.device

    def describe(self) -> dict[str, Any]:
        """All that changes results, JSON-ready."""
        bins, window_hw = self.counter.head.bins, self.counter.window_hw
        return {
            "method": "clip-ebc",
            "counts": self.counter.name,
            "block_px": bins.block_px,
            "bin_centres": list(bins.centres),
            "window_hw": None if window_hw is None else list(window_hw),
            **self.about,
            "versions": {"ovseg": ovseg.__version__, "torch": torch.__version__},
        }

    def bank(self, classes: Any, templates: Any = None) -> tuple[Vocabulary, TextBank]:
        """The word that was asked for, and the sentences about its numbers.

        Args:
            classes: anything that `Vocabulary.parse` takes; one name, that of what is counted.
            templates: not used: the counter was trained with its own sentences.

        Raises:
            VocabularyError: it counts something else.
        """
        vocabulary = Vocabulary.parse(classes)
        known = {name.casefold() for name in self.names}
        others = [name for name in vocabulary.names if name.casefold() not in known]
        if others or len(vocabulary) != 1:
            raise VocabularyError(
                f"this counter was trained for '{self.counter.name}' alone: ask for "
                f"{' or '.join(repr(name) for name in self.names)}, got {', '.join(vocabulary.names[:4])}"
            )
        text = self.counter.head.text
        return vocabulary, TextBank(text, torch.zeros(len(text), dtype=torch.long), vocabulary.names)

    def answers(
        self,
        images: Iterable[Any],
        classes: Any,
        *,
        tasks: str | Iterable[str] = ("count",),
        batch_size: int | None = None,
        templates: Any = None,
        regions: Any = None,
    ) -> Iterator[Answers]:
        """Results, lazily and in order; images may differ in size.

        Args:
            images: anything that `ovseg.images.read_image` takes.
            classes: see `bank`.
            tasks: "count".
            batch_size: images taken at a time, by default 1; results do not depend on it.
            templates: not used.
            regions: not used.

        Raises:
            ConfigError: another task, or an unusable batch size.
            VocabularyError: it counts something else. Both are raised at the call, not at the first result.
        """
        named = check_tasks(tasks)
        if named != ("count",):
            raise ConfigError(f"a trained counter counts and does nothing else: tasks are {', '.join(named)}")
        size = 1 if batch_size is None else batch_size
        if size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {size}")
        vocabulary, _ = self.bank(classes)
        return self._answers(images, vocabulary.names, size)

    def _answers(self, images: Iterable[Any], names: tuple[str, ...], size: int) -> Iterator[Answers]:
        def count(alike: list[np.ndarray]) -> Iterable[Counts]:
            pixels = torch.from_numpy(np.stack(alike)).permute(0, 3, 1, 2).to(self.device).float() / 255
            return self.counter(pixels, name=names[0])

        for found in in_batches(images, size, count):
            yield Answers(found.image_hw, names, counts=found)

    def __call__(self, images: Iterable[Any], classes: Any, **options: Any) -> Iterator[Any]:
        """Raises ConfigError: there is no class for every pixel here."""
        raise ConfigError("a trained counter gives no class for every pixel: ask answers(..., tasks='count')")
