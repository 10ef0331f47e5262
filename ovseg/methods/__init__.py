"""One small file per published method: a preset of the scorer, its source, its deviations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from ovseg.encoders.clip import ClipEncoder
from ovseg.errors import ConfigError, unknown_name
from ovseg.methods.clearclip import clearclip
from ovseg.methods.clip import clip
from ovseg.methods.clip_dinoiser import clip_dinoiser
from ovseg.methods.clip_dinoiser_teacher import clip_dinoiser_teacher
from ovseg.methods.clip_surgery import clip_surgery
from ovseg.methods.corrclip import corrclip
from ovseg.methods.excel import excel
from ovseg.methods.maskclip import maskclip
from ovseg.methods.naclip import naclip
from ovseg.methods.proxyclip import proxyclip
from ovseg.methods.rgb_control import rgb_control
from ovseg.methods.sc_clip import sc_clip
from ovseg.methods.sclip import sclip
from ovseg.methods.trident import trident
from ovseg.scorer import Scorer

#: Every method by the name that `--method` and configs take.
METHODS: dict[str, Callable[..., Scorer]] = {
    "clip": clip,
    "maskclip": maskclip,
    "sclip": sclip,
    "clearclip": clearclip,
    "naclip": naclip,
    "clip-surgery": clip_surgery,
    "proxyclip": proxyclip,
    "clip-dinoiser": clip_dinoiser,
    "clip-dinoiser-teacher": clip_dinoiser_teacher,
    "excel": excel,
    "sc-clip": sc_clip,
    "corrclip": corrclip,
    "trident": trident,
    "rgb-control": rgb_control,
}

#: Of these, what is no published method but there to compare with.
CONTROLS = ("rgb-control",)

#: Methods that step through CLIP's inner blocks by themselves, or ask no CLIP: they merge no tokens.
UNMERGED = ("clip-surgery", "excel", "corrclip", "rgb-control")

#: The weights that a method's further parts were published with.
PUBLISHED_PARTS: dict[str, dict[str, str]] = {
    "proxyclip": {"guide": "dino_vitb8"},
    "clip-dinoiser": {"convolutions": "clip_dinoiser"},
    "clip-dinoiser-teacher": {"guide": "dino_vitb16", "saliency": "found_vits8"},
    "trident": {"guide": "dino_vitb16", "sam": "sam_vitb"},
    "corrclip": {"guide": "dino_vitb8", "sam": "sam_vitb"},
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


def parts_of(method: str) -> tuple[str, ...]:
    """The networks that a method takes beside the encoder: guide, sam, saliency, convolutions.

    Raises:
        ConfigError: no such method; the message lists them and the nearest match.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    parameters = inspect.signature(METHODS[method]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD)[1:]


def required_parts(method: str) -> tuple[str, ...]:
    """Of `parts_of`, those that the method cannot do without."""
    signature = inspect.signature(METHODS[method]).parameters
    return tuple(part for part in parts_of(method) if signature[part].default is inspect.Parameter.empty)


def check_options(method: str, options: Iterable[str]) -> None:
    """Raises ConfigError, with the nearest match, for a method or an option that does not exist."""
    valid = options_of(method)
    for name in options:
        if name not in valid:
            raise unknown_name(f"option of method '{method}'", name, valid)


def build_method(method: str, encoder: ClipEncoder, **parts_and_options: Any) -> Scorer:
    """A method's scorer around an encoder.

    Args:
        method: its name.
        encoder: the image tower.
        parts_and_options: its parts as modules, and its options.

    Raises:
        ConfigError: no such method, a part is missing, or it has no such option.
    """
    parts = parts_of(method)
    check_options(method, parts_and_options.keys() - set(parts))
    if missing := [part for part in required_parts(method) if part not in parts_and_options]:
        raise ConfigError(f"method '{method}' needs a {' and a '.join(missing)}")
    return METHODS[method](encoder, **parts_and_options)
