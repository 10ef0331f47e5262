"""mmseg's and mmdet's own models, imported when a config first asks for them: that takes seconds."""

from __future__ import annotations

import contextlib
import importlib
import io
import warnings

from ovseg.mm import compiled_ops


def register_models(package: str) -> None:
    """Makes the models of "mmseg" or "mmdet" known to their registries, also without compiled operators."""
    compiled_ops.install()  # before mmcv looks for its own
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of their imports: moved operators, absent options, odd escapes
        importlib.import_module(f"{package}.models")
