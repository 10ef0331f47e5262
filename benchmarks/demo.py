"""How long the page takes to answer when words, threshold or opacity change and features are there.

    python benchmarks/demo.py                                  (prints the table)
    python benchmarks/demo.py --write docs/demo.md
    python benchmarks/demo.py --methods naclip --sides 720

Starts the page as `demo/app.py` does and asks it as a browser does: the event goes through the queue over
HTTP, and the time ends when the answer and its pictures have arrived. Bundled models, nothing is downloaded.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import torch
from PIL import Image

from ovseg.demo.serve import Served, build, build_parser
from ovseg.demo.settings import TASK_TABS, Settings
from ovseg.pages import PageSection, commit, device_name, markdown_table

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "demo" / "images" / "picnic.jpg"
WORDS = "bear, orange, potted plant = house plant, boat, laptop, hot dog, grass"
#: What is changed.
CHANGES = ("words", "threshold", "opacity")


class Visitor:
    """A browser's tab, without the browser.

    Args:
        served: the page.
        address: where it is.
        picture: an image to upload.
    """

    def __init__(self, served: Served, address: str, picture: Image.Image) -> None:
        self.page, self.handlers, self.served = served.handlers.page, served.handlers, served
        self.http = httpx.Client(base_url=address, timeout=300)
        self.session = f"{id(self):x}"
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=92)
        [path] = self.http.post("gradio_api/upload", files={"files": ("photo.jpg", stream.getvalue())}).json()
        self.given: dict[Any, Any] = {
            self.page.image: {"path": path, "meta": {"_type": "gradio.FileData"}},
            self.page.words: WORDS,
            self.page.background: "",
            self.page.threshold: 0,
            self.page.opacity: 0.55,
            self.page.encoder: "bundled",
            self.page.method: Settings().method,
            self.page.other: Settings().other,
            self.page.colorblind: False,
        }

    def ask(self, part: Any, event: str, data: Any = None) -> tuple[float, str]:
        """What happens when a component is used: seconds until all has arrived, and the answer as text."""
        function = next(each for each in self.served.blocks.fns.values() if (part._id, event) in each.targets)
        start = time.perf_counter()
        asked = {
            "data": [self.given.get(each) for each in function.inputs],
            "event_data": data,
            "fn_index": function._id,
            "trigger_id": part._id,
            "session_hash": self.session,
        }
        self.http.post("gradio_api/queue/join", json=asked).raise_for_status()
        with self.http.stream("GET", "gradio_api/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line else {}
                if message.get("msg") == "process_completed":
                    break
        answer = message["output"]
        for address in _addresses(answer):
            self.http.get(address).raise_for_status()
        seconds, text = time.perf_counter() - start, json.dumps(answer)
        if not message["success"] or 'role=\\"alert' in text:
            raise SystemExit(f"error: the page answered {text[:500]}")
        return seconds, text

    def show(self, tab: str) -> None:
        """Opens a tab and waits for its answer."""
        self.ask(self.page.tab_items[tab], "select")
        self.ask(self.page.run, "click")


def _addresses(answer: Any) -> list[str]:
    """Of the files that an answer shows."""
    if isinstance(answer, Mapping):
        own = [answer["url"]] if isinstance(answer.get("url"), str) else []
        return own + [each for value in answer.values() for each in _addresses(value)]
    return [each for value in answer for each in _addresses(value)] if isinstance(answer, list) else []


def measure(visitor: Visitor, rounds: int) -> list[tuple[str, dict[str, list[float]]]]:
    """Seconds of each change in each tab; a first round that warms up does not count."""
    page, given, found = visitor.page, visitor.given, []

    def changed(part: Any, event: str, value: Callable[[int], Any]) -> list[float]:
        seconds, before = [], given[part]
        for number in range(rounds + 1):
            given[part] = value(number)
            taken, text = visitor.ask(part, event)
            if "encoded in" in text:
                raise SystemExit("error: features were made anew")
            seconds.append(taken)
        given[part] = before
        return seconds[1:]

    how = {
        "words": (page.words, "submit", lambda number: f"{WORDS}, thing {time.time_ns()}"),
        "threshold": (page.threshold, "release", lambda number: 0.2 + number / 100),
        "opacity": (page.opacity, "release", lambda number: 0.3 + number / 100),
    }
    for tab in (*TASK_TABS, "compare", "features"):
        visitor.show(tab)
        kinds = ("opacity",) if tab == "features" else CHANGES
        found.append((tab, {kind: changed(*how[kind]) for kind in kinds}))
    visitor.show("segment")
    clicks = [
        visitor.ask(page.pictures["segment"], "select", {"index": [100 + 20 * number, 150], "value": None})[0]
        for number in range(rounds + 1)
    ]
    found.append(("(a click on a point)", {"opacity": clicks[1:]}))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and where asked write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=[Settings().method, "trident", "naclip"])
    parser.add_argument("--sides", type=int, nargs="+", default=[336, 1280], help="long sides of the picture")
    parser.add_argument("--rounds", type=int, default=5, help="that count, after one that warms up")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in this page")
    arguments = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        served = build(build_parser().parse_args(["--port", "0", "-q"]), Path(folder).resolve())
        _, address, _ = served.blocks.launch(**served.launch, prevent_thread_lock=True)
        for method in arguments.methods:
            for side in arguments.sides:
                with Image.open(PHOTO) as photo:
                    picture = photo.convert("RGB").resize((side, side * photo.height // photo.width))
                visitor = Visitor(served, address, picture)
                visitor.given[visitor.page.method] = method
                for name, changes in measure(visitor, arguments.rounds):
                    cells = [_cell(changes.get(kind)) for kind in CHANGES]
                    rows.append((method, f"{picture.width} x {picture.height}", name, *cells))
                    print(*rows[-1], sep="  ", flush=True)
        served.blocks.close(verbose=False)
    lines = markdown_table(("method", "picture", "tab", *CHANGES), rows, left=3)
    lines += ["", f"Milliseconds, median / largest of {arguments.rounds}."]
    lines[-1] += f" {device_name('cpu')}, torch {torch.__version__}, commit {commit()}."
    print("\n".join(["", *lines]))
    if arguments.write:
        PageSection("demo", "benchmarks/demo.py").write(arguments.write, lines)
    return 0


def _cell(seconds: Sequence[float] | None) -> str:
    """Median and largest, in milliseconds."""
    return "" if seconds is None else f"{1000 * median(seconds):.0f} / {1000 * max(seconds):.0f}"


if __name__ == "__main__":
    sys.exit(main())
