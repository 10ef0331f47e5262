"""A page that runs, with the bundled models, for the tests of this folder."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ovseg.demo.engine import Engine, Picture
from ovseg.demo.serve import Served, build, build_parser

DEMO = Path(__file__).parents[2] / "demo"


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine(max_side=400, max_pixels=1_000_000)


@pytest.fixture(scope="session")
def picnic(engine: Engine) -> Picture:
    return engine.read(DEMO / "images/picnic.jpg")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page with its handlers, not launched."""
    folder = tmp_path_factory.mktemp("page")
    before = os.environ.get("GRADIO_TEMP_DIR")
    arguments = build_parser().parse_args(["--examples", str(DEMO / "examples.json"), "--port", "0", "-q"])
    made = build(arguments, folder)
    yield made
    if before is None:
        os.environ.pop("GRADIO_TEMP_DIR", None)
    else:
        os.environ["GRADIO_TEMP_DIR"] = before
    gc.collect()  # what Gradio left open is complained of here, where it is expected


@pytest.fixture(scope="module")
def address(served: Served) -> Iterator[str]:
    """Where the page is served; only for tests that may open sockets."""
    torch.set_num_threads(1)
    _, url, _ = served.blocks.launch(**{**served.launch, "server_port": None}, prevent_thread_lock=True)
    yield url
    served.blocks.close(verbose=False)
