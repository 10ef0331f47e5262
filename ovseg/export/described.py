"""What an exported file says of itself: all that a runtime without torch needs to know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ovseg.errors import CheckpointError

#: Under which name the description lies in archives, and what its keys begin with in an ONNX file.
NAME, PREFIX = "ovseg.json", "ovseg."


@dataclass(frozen=True)
class Described:
    """An exported method.

    Attributes:
        method, options: as for `Inferencer`.
        encoder, weights_sha256: of the image tower; words must be encoded by the same model.
        parts: the networks beside it, with their weights.
        dim: of image and text vectors.
        patch_hw: pixels of a patch; an image side is at least one.
        mean, std: RGB statistics for values in [0, 1]. The graph applies them; padding is `mean`, too.
        short_side: images are resized to it first; None: not at all.
        windows: the fields of a `WindowPlan`.
        temperature, softmax_at, softmax_over, sure: see `ScoreMap`.
        size_hw: the only size of window that the graph takes; None: any.
        objectness: whether it is one of the outputs.
        left_out: refinements of the method that are not part of the file.
        quantized: "int8" or None.
        version: of ovseg.
    """

    method: str
    options: Mapping[str, Any]
    encoder: str
    weights_sha256: str
    parts: Mapping[str, Any]
    dim: int
    patch_hw: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    short_side: int | None
    windows: Mapping[str, Any]
    temperature: float
    softmax_at: str
    softmax_over: str
    sure: float
    size_hw: tuple[int, int] | None = None
    objectness: bool = False
    left_out: tuple[str, ...] = ()
    quantized: str | None = None
    version: str = ""

    def to_json(self) -> str:
        """As one text."""
        return json.dumps(asdict(self))

    def to_metadata(self) -> dict[str, str]:
        """As an ONNX file keeps it: a JSON value for each key."""
        return {PREFIX + name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], source: str) -> Described:
        """Read back; keys of others are passed over.

        Raises:
            CheckpointError: the file was not exported by ovseg, or by another version.
        """
        own = {key[len(PREFIX) :]: value for key, value in metadata.items() if key.startswith(PREFIX)}
        try:
            values = {each.name: json.loads(own[each.name]) for each in fields(cls)}
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{source} does not say how it is to be run ({error!r}): export it with tools/export.py of "
                f"this version"
            ) from error
        tuples = {
            name: tuple(value)
            for name, value in values.items()
            if isinstance(value, list) and name != "options"
        }
        return cls(**{**values, **tuples})
