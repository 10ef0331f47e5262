"""Gradio, told before it is imported to send nothing and look nothing up."""

from __future__ import annotations

import os

from ovseg.errors import MissingDependencyError

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

try:
    import gradio as gr
except ImportError as error:
    raise MissingDependencyError("the demo needs gradio: pip install 'ovseg[demo]'") from error

__all__ = ["gr"]
