"""The one way that scenes compile their pixel loops."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from numba import njit


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first use, kept on disk. No fast-math: every machine must draw the same bytes.

    A type-checking wrapper that a test's import hook has put around the function is taken off, numba
    cannot compile it.
    """
    return njit(cache=True)(inspect.unwrap(function))
