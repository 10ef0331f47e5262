"""ovseg: name anything in words, find it in pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Inferencer", "Vocabulary", "__version__"]

if TYPE_CHECKING:
    from ovseg.inferencer import Inferencer
    from ovseg.text.vocabulary import Vocabulary

_HOMES = {"Inferencer": "ovseg.inferencer", "Vocabulary": "ovseg.text.vocabulary"}


def __getattr__(name: str) -> Any:
    """Heavy parts (torch, open_clip) load when they are first asked for."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ovseg' has no attribute '{name}'")
