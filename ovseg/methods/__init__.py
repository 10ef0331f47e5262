"""One small file per published method: a preset of the scorer, its source, its deviations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from ovseg.encoders.clip import ClipEncoder
from ovseg.errors import unknown_name
from ovseg.methods.clearclip import clearclip
from ovseg.methods.clip import clip
from ovseg.methods.maskclip import maskclip
from ovseg.methods.naclip import naclip
from ovseg.methods.sclip import sclip
from ovseg.scorer import Scorer

#: Every method by the name that `--method` and configs take.
METHODS: dict[str, Callable[..., Scorer]] = {
    "clip": clip,
    "maskclip": maskclip,
    "sclip": sclip,
    "clearclip": clearclip,
    "naclip": naclip,
}


def options_of(method: str) -> dict[str, Any]:
    """A method's options and their published defaults.

    Raises:
        ConfigError: no such method; the message lists them and the nearest match.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_options(method: str, options: Iterable[str]) -> None:
    """Raises ConfigError, with the nearest match, for a method or an option that does not exist."""
    valid = options_of(method)
    for name in options:
        if name not in valid:
            raise unknown_name(f"option of method '{method}'", name, valid)


def build_method(method: str, encoder: ClipEncoder, **options: Any) -> Scorer:
    """A method's scorer around an encoder.

    Raises:
        ConfigError: no such method, or it has no such option.
    """
    check_options(method, options)
    return METHODS[method](encoder, **options)
