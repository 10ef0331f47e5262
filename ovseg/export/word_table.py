"""Encoded words as a `.npz` file: what an exported model is asked, without the text tower."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ovseg.errors import VocabularyError

_KEYS = ("embeddings", "class_of_query", "names", "background", "thresholds", "encoder", "weights_sha256")


@dataclass(frozen=True)
class WordTable:
    """A vocabulary in the space of one model's images.

    Attributes:
        embeddings: unit rows, one for each query.
        class_of_query: the class that each query speaks for.
        names: of the classes.
        background: indices of background classes.
        thresholds: least probability by class; NaN where the class has none of its own.
        encoder, weights_sha256: the model.
    """

    embeddings: Float[np.ndarray, "Q D"]
    class_of_query: Int[np.ndarray, " Q"]
    names: tuple[str, ...]
    background: frozenset[int]
    thresholds: Float[np.ndarray, " K"]
    encoder: str
    weights_sha256: str

    @classmethod
    def of(cls, bank: Any, *, encoder: str, weights_sha256: str) -> WordTable:
        """Of a `TextBank`.

        Raises:
            VocabularyError: classes have examples, which are compared with features and are no words.
        """
        if bank.prototypes is not None:
            raise VocabularyError(
                "classes that were taught by examples cannot be exported as words: name them by words alone"
            )
        limits: Sequence[float | None] = bank.thresholds or (None,) * len(bank.names)
        return cls(
            bank.embeddings.cpu().numpy().astype(np.float32),
            bank.class_of_query.cpu().numpy().astype(np.int64),
            tuple(bank.names),
            frozenset(bank.background),
            np.array([np.nan if each is None else each for each in limits], np.float32),
            encoder,
            weights_sha256,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a `.npz` without pickles."""
        values: dict[str, Any] = {key: np.asarray(getattr(self, key)) for key in _KEYS}
        values["background"] = np.array(sorted(self.background), np.int64)
        with open(path, "wb") as stream:
            np.savez(stream, **values)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WordTable:
        """Reads what `save` wrote.

        Raises:
            VocabularyError: the file is not there, damaged, or no table of words.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                values = {key: file[key] for key in _KEYS}
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise VocabularyError(
                f"{path} is no file of encoded words ({error}): write one with tools/export.py --words "
                f"'cat, dog' -o words.npz"
            ) from error
        return cls(
            values["embeddings"].astype(np.float32),
            values["class_of_query"].astype(np.int64),
            tuple(str(name) for name in values["names"]),
            frozenset(int(index) for index in values["background"]),
            values["thresholds"].astype(np.float32),
            str(values["encoder"]),
            str(values["weights_sha256"]),
        )
