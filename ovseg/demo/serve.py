"""From the command line to a running page."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovseg.demo.catalogue import check_present, encoders, methods
from ovseg.demo.examples import copied, read_examples
from ovseg.demo.settings import TABS, Settings
from ovseg.errors import ConfigError, OvsegError


@dataclass(frozen=True)
class Served:
    """A page, ready to launch.

    Attributes:
        blocks: Gradio's.
        launch: arguments of `Blocks.launch`.
        engine: what answers.
        handlers: the page's behaviour.
    """

    blocks: Any
    launch: dict[str, Any]
    engine: Any
    handlers: Any


def build_parser() -> argparse.ArgumentParser:
    """The options of `demo/app.py`."""
    parser = argparse.ArgumentParser(
        prog="app.py",
        description="A page in the browser: drop a photo, type words, see what they mean in pixels.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets other machines in: know who they are"
    )
    parser.add_argument("--port", type=int, default=7860, help="0 takes any free one")
    parser.add_argument("--encoder", help="chosen at first (default: the best that is here)")
    parser.add_argument("--method", default="proxyclip", help="chosen at first")
    parser.add_argument("--words", default="", help="at first (default: those of the first example)")
    parser.add_argument("--tab", default="segment", choices=TABS, help="shown at first")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps")
    parser.add_argument(
        "--examples", type=Path, help="a JSON file of example images (default: demo/examples.json)"
    )
    parser.add_argument("--folder", type=Path, help="for uploads and downloads (default: a temporary one)")
    parser.add_argument("--concurrency", type=int, default=2, help="questions answered at a time")
    parser.add_argument("--waiting", type=int, default=64, help="questions that may wait; more are refused")
    parser.add_argument("--max-upload", default="32mb", help="size of an uploaded file")
    parser.add_argument("--max-megapixels", type=float, default=64.0, help="larger images are refused")
    parser.add_argument(
        "--max-side", type=int, default=1280, help="larger images are scaled down to this long side"
    )
    parser.add_argument("--features-mb", type=int, default=384, help="memory for encoded images")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but failures")
    return parser


def build(arguments: argparse.Namespace, folder: Path) -> Served:
    """The page of these arguments.

    Args:
        arguments: of `build_parser`.
        folder: for uploads, examples and downloads; nothing else is readable through the page.

    Raises:
        MissingDependencyError: gradio is not installed.
        ConfigError: an argument is wrong.
        CheckpointError: weights of the method or encoder are not here.
    """
    for name in ("concurrency", "waiting", "max_side", "features_mb", "max_megapixels"):
        if getattr(arguments, name) <= 0:
            raise ConfigError(
                f"--{name.replace('_', '-')} is {getattr(arguments, name)}: expected more than 0"
            )
    encoder = arguments.encoder or encoders()[0].name
    check_present(arguments.method, encoder)
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")  # where Gradio puts and looks for uploads
    from ovseg.demo.endpoints import Endpoints
    from ovseg.demo.engine import Engine
    from ovseg.demo.gradio_offline import gr
    from ovseg.demo.handlers import Handlers
    from ovseg.demo.page import build_page
    from ovseg.demo.style import CSS, theme
    from ovseg.demo.wiring import add_endpoints, wire

    defaults = Settings(method=arguments.method, encoder=encoder, words=arguments.words, tab=arguments.tab)
    examples = [] if arguments.examples is None else read_examples(arguments.examples)
    examples = copied(examples, folder / "public" / "examples")
    engine = Engine(
        device=arguments.device,
        max_side=arguments.max_side,
        max_pixels=int(arguments.max_megapixels * 1_000_000),
        features_mb=arguments.features_mb,
    )
    with gr.Blocks(
        title="ovseg", fill_width=True, analytics_enabled=False, delete_cache=(600, 7200)
    ) as blocks:
        page = build_page(defaults, examples, methods(encoder), encoders())
        handlers = Handlers(
            engine,
            page,
            defaults=defaults,
            examples=examples,
            uploads=folder / "uploads",
            downloads=folder / "public" / "downloads",
        )
        wire(blocks, page, handlers, concurrency=arguments.concurrency)
        add_endpoints(page, Endpoints(handlers), concurrency=arguments.concurrency)
    blocks.queue(max_size=arguments.waiting, default_concurrency_limit=arguments.concurrency)
    launch = {
        "server_name": arguments.host,
        "server_port": arguments.port or None,
        "inbrowser": arguments.open,
        "quiet": arguments.quiet,
        "theme": theme(),
        "css": CSS,
        "max_file_size": arguments.max_upload,
        "allowed_paths": [str(folder / "public")],
        "show_error": False,
        "share": False,
        "ssr_mode": False,
        "run_history": False,
        "enable_monitoring": False,
        "footer_links": ["api"],
    }
    return Served(blocks, launch, engine, handlers)


def main(argv: Sequence[str] | None = None, *, examples: Path | None = None) -> int:
    """Runs the page until it is stopped; returns the exit status.

    Args:
        argv: the command line.
        examples: the file of examples where `--examples` names none.
    """
    arguments = build_parser().parse_args(argv)
    arguments.examples = arguments.examples or examples
    with tempfile.TemporaryDirectory(prefix="ovseg-demo-") as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            served = build(arguments, folder)
            served.blocks.launch(**served.launch)
        except (OvsegError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        finally:
            sys.stdout.flush()
    return 0
