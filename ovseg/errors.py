"""What can go wrong, by the thing that is wrong.

Every message says what was expected, what came, and what to do. All classes derive from `OvsegError`,
so that a tool can print the message without a traceback; each also derives from the built-in exception
that a caller would guess.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OvsegError(Exception):
    """Base of every error that a caller or a user can cause."""


class ShapeError(OvsegError, ValueError):
    """A tensor or image has the wrong size, rank or range."""


class VocabularyError(OvsegError, ValueError):
    """Classes, prompts or templates are unusable."""


class CheckpointError(OvsegError, RuntimeError):
    """Weights are missing, unreadable, unsafe or do not fit the model."""


class CacheError(OvsegError, RuntimeError):
    """What a cache holds is damaged, of something else, or out of date."""


class ImageError(OvsegError, ValueError):
    """An image cannot be read."""


class ConfigError(OvsegError, ValueError):
    """An option, a name or a config file is wrong."""


class MissingDependencyError(OvsegError, ImportError):
    """An optional package is needed and absent."""


def unknown_name(kind: str, name: str, valid: Iterable[str]) -> ConfigError:
    """The error for an unknown name: the valid ones, and the nearest match.

    Args:
        kind: what the name should have been, singular ("method").
        name: what came.
        valid: the names that exist.
    """
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return ConfigError(f"unknown {kind} '{name}'.{hint} Valid: {', '.join(valid)}")
