"""Which methods and encoders can be chosen here, those whose weights are present first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ovseg.encoders.clip_loading import default_encoder
from ovseg.encoders.hub import available, find_cached
from ovseg.encoders.weights import BUNDLED, CLIP_KINDS, WEIGHTS
from ovseg.errors import CheckpointError, unknown_name
from ovseg.methods import METHODS, options_of
from ovseg.parts import part_names

#: How large the bundled models take an image: they have seen small pictures only (see configs/*_bundled_*).
BUNDLED_OPTIONS: Mapping[str, Any] = {"short_side": 224, "crop": 112, "stride": 56}
BUNDLED_OPTIONS_OF: Mapping[str, Mapping[str, Any]] = {
    "trident": {"stride": 48},
    "clip-dinoiser": {"threshold": 0.35},
}


@dataclass(frozen=True)
class Choice:
    """A method or an encoder.

    Attributes:
        name: as the settings have it.
        missing: weights that are not on this machine, by name.
    """

    name: str
    missing: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """As the drop-down shows it."""
        return f"{self.name}  (not here yet)" if self.missing else self.name


def encoders() -> list[Choice]:
    """Every encoder, those that are here first; the best of them leads."""
    listed = [
        Choice(entry.name, () if state in ("bundled", "cached") else (entry.name,))
        for entry, state in available(kinds=CLIP_KINDS)
    ]
    best = default_encoder()
    return sorted(listed, key=lambda each: (bool(each.missing), each.name != best, each.name != BUNDLED))


def methods(encoder: str) -> list[Choice]:
    """Every method, those whose networks are all here first."""
    found = [Choice(name, missing_parts(name, encoder)) for name in METHODS]
    return sorted(found, key=lambda each: bool(each.missing))


def missing_parts(method: str, encoder: str) -> tuple[str, ...]:
    """The weights beside CLIP's that a method would have to fetch."""
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    named = part_names(method, {}, None, bundled=encoder == BUNDLED)
    return tuple(each for each in named.values() if isinstance(each, str) and is_missing(each))


def is_missing(name: str) -> bool:
    """Whether weights of the table are not on this machine."""
    return name != BUNDLED and find_cached(WEIGHTS[name]) is None


def check_present(method: str, encoder: str) -> None:
    """Nothing is fetched because somebody chose it in a list.

    Raises:
        ConfigError: no such method or encoder.
        CheckpointError: weights are not here; the message says how to get them.
    """
    valid = {each.name: each for each in encoders()}
    if encoder not in valid:
        raise unknown_name("encoder", encoder, valid)
    missing = (*valid[encoder].missing, *missing_parts(method, encoder))
    if missing:
        raise CheckpointError(how_to_get(missing))


def how_to_get(missing: tuple[str, ...]) -> str:
    """What to do about weights that are not here."""
    ways = []
    for name in missing:
        entry = WEIGHTS[name]
        if entry.repo:
            ways.append(f"{name}: hf download {entry.repo} {entry.files[0].filename}")
        else:
            ways.append(f"{name}: download {entry.origin} into torch.hub's folder of checkpoints")
    return (
        f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not on this machine. "
        f"Where there is a network: {'; '.join(ways)}. Then load this page again."
    )


def options_for(method: str, encoder: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A method's options: smaller pictures for the bundled models, then those given that the method has."""
    known = options_of(method)
    small = {**BUNDLED_OPTIONS, **BUNDLED_OPTIONS_OF.get(method, {})} if encoder == BUNDLED else {}
    return {name: value for name, value in {**small, **(given or {})}.items() if name in known}
