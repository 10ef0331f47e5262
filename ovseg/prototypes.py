"""Visual prototypes: what a few examples of some classes add to words, and how that is kept in a file.

Axis letters as in `ovseg.structures`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from ovseg.errors import ShapeError, VocabularyError

#: What has to be the same where prototypes are made and where they are used; as `Inferencer.describe` says.
MADE_WITH = ("encoder", "weights_sha256", "method", "options", "parts")


@dataclass(frozen=True)
class VisualPrototypes:
    """What examples say of C classes: `log softmax(strength * (weights f + bias)) + log C`.

    That is how many times likelier than by chance each is for a unit feature `f`. It is added to the logits
    of these classes. A class without examples gets nothing and stands as its words make it; examples can win
    against it by `log C` at most, however strong they are.

    Attributes:
        names: the C classes that had examples.
        weights: `(C, D)`.
        bias: `(C,)`.
        strength: how much they count against the words.
        made_with: encoder and method, `MADE_WITH`; empty where nobody cares.
        facts: for people: how many images, patches ...
    """

    names: tuple[str, ...]
    weights: Float[Tensor, "C D"]
    bias: Float[Tensor, " C"]
    strength: float = 1.0
    made_with: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.weights) == len(self.bias):
            raise ShapeError(
                f"{len(self.names)} classes came with {len(self.weights)} rows of weights and "
                f"{len(self.bias)} biases"
            )

    def to(self, device: torch.device | str) -> VisualPrototypes:
        """On another device."""
        return replace(self, weights=self.weights.to(device), bias=self.bias.to(device))

    def logits(
        self, grid: Float[Tensor, "B D h w"], names: Sequence[str]
    ) -> Float[Tensor, "B {len(names)} h w"]:
        """What is added to the logits of each class.

        Args:
            grid: features of unit length.
            names: the classes, in order.

        Raises:
            ShapeError: the features are of another model.
        """
        if grid.shape[1] != self.weights.shape[1]:
            raise ShapeError(
                f"visual prototypes have {self.weights.shape[1]} dimensions and the image {grid.shape[1]}: "
                f"use the encoder that they were made with"
            )
        found = torch.einsum("bdhw,cd->bchw", grid.float(), self.weights.to(grid.device))
        found = evidence(found + self.bias.to(grid.device)[:, None, None], self.strength)
        place = {name: index for index, name in enumerate(self.names)}
        none = len(self.names)
        rows = torch.tensor([place.get(name, none) for name in names], device=grid.device)
        return torch.cat([found, torch.zeros_like(found[:, :1])], dim=1)[:, rows]

    def made_by(self, description: Mapping[str, Any]) -> VisualPrototypes:
        """The same, signed by what made them, as `Inferencer.describe` says it."""
        return replace(self, made_with={key: description[key] for key in MADE_WITH if key in description})

    def check(self, description: Mapping[str, Any], where: str = "") -> None:
        """Raises VocabularyError unless the description is of the encoder and method that made them.

        Args:
            description: `Inferencer.describe()`.
            where: the file, for the message.
        """
        now = _plain({key: description[key] for key in MADE_WITH if key in description})
        then = _plain(self.made_with)
        differing = [key for key in MADE_WITH if key in then and then[key] != now.get(key)]
        if not differing:
            return
        # weights that differ under one name need to be told apart; else the name says enough
        shown = [key for key in differing if key != "weights_sha256" or "encoder" not in differing]
        made = "; ".join(f"{key} {_difference(then[key], now.get(key))}" for key in shown)
        raise VocabularyError(
            f"{where + ': ' if where else ''}the visual prototypes were made with another encoder or method "
            f"({made}): use the one they were made with, make them again with tools/fit.py, or take "
            f"`prototypes` out of the file to use its words alone"
        )

    @cached_property
    def sha256(self) -> str:
        """Of everything that changes results."""
        content = json.dumps([self.names, self.strength, _plain(self.made_with)], sort_keys=True).encode()
        values = torch.cat([self.weights.flatten(), self.bias]).float().cpu().numpy().tobytes()
        return hashlib.sha256(content + values).hexdigest()

    def describe(self) -> dict[str, Any]:
        """JSON-ready, without the numbers."""
        return {
            "names": list(self.names),
            "strength": self.strength,
            "made_with": _plain(self.made_with),
            "facts": _plain(self.facts),
            "sha256": self.sha256,
        }

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a file holds of them beside `describe`."""
        return {
            name: each.detach().float().cpu().contiguous()
            for name, each in (("weights", self.weights), ("bias", self.bias))
        }

    def to_json(self) -> dict[str, Any]:
        """JSON-ready, with the numbers as safetensors in base64."""
        return self.describe() | {
            "tensors": base64.b64encode(safetensors.torch.save(self.tensors)).decode("ascii")
        }

    @classmethod
    def from_json(
        cls, data: object, where: str = "", tensors: Mapping[str, Tensor] | None = None
    ) -> VisualPrototypes:
        """The inverse of `to_json`.

        Args:
            data: the entry `prototypes` of a vocabulary file.
            where: the file, for messages.
            tensors: the numbers, where they are not in `data`.

        Raises:
            VocabularyError: something is missing, or the numbers are not those that the hash is of.
        """
        prefix = f"{where}: " if where else ""
        try:
            if not isinstance(data, Mapping):
                raise TypeError("expected a mapping")
            if tensors is None:
                tensors = safetensors.torch.load(base64.b64decode(data["tensors"], validate=True))
            made = cls(
                tuple(data["names"]),
                tensors["weights"].float(),
                tensors["bias"].float(),
                float(data["strength"]),
                dict(data["made_with"]),
                dict(data.get("facts", {})),
            )
        except (KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
            raise VocabularyError(
                f"{prefix}`prototypes` cannot be read ({type(error).__name__}: {error}): they are written by "
                f"tools/fit.py and not by hand"
            ) from error
        if not (made.weights.isfinite().all() and made.bias.isfinite().all()):
            raise VocabularyError(f"{prefix}`prototypes` hold numbers that are not finite: make them again")
        return made


def evidence(logits: Float[Tensor, "B C *space"], strength: float) -> Float[Tensor, "B C *space"]:
    """What is added to the logits of words, of what `weights f + bias` is; see `VisualPrototypes`."""
    return (strength * logits).log_softmax(dim=1) + math.log(logits.shape[1])


def _plain(value: Any) -> Any:
    """As JSON gives it back: lists for tuples, text for paths."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))


def _difference(then: Any, now: Any) -> str:
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
        return ", ".join(f"{key}: {then.get(key)!r}, now {now.get(key)!r}" for key in keys)
    return f"{then!r}, now {now!r}"
