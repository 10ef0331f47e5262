"""The report: complete, self-contained, safe with any name, and its filter works in a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image
from run_helpers import FakeSegmenter, poison, save

from ovseg.batch import BatchPredictor
from ovseg.inputs import find_images
from ovseg.outputs import report
from ovseg.outputs.run_files import write_class_files, write_run_files
from ovseg.outputs.writers import build_writers
from ovseg.run_folder import RunFolder
from ovseg.runs import run
from ovseg.text.vocabulary import Vocabulary

CHROMIUM = "/usr/bin/chromium"


class Page(HTMLParser):
    """Checks that tags close, and collects attributes and text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run over two dark images, a bright one and one that fails; names that would break a careless page."""
    for number, (name, low, high) in enumerate(
        [("a<b>&\"'.png", 1, 80), ("sub/ü 猫 #1%.png", 1, 80), ("z.png", 130, 255)]
    ):
        path = save(tmp_path / "photos" / name, number)
        with Image.open(path) as picture:
            picture.point(lambda v, low=low, high=high: low + v * (high - low) // 255).save(path)
    poison(tmp_path / "photos/bad.png")
    (tmp_path / "photos/torn.jpg").write_bytes(b"\xff\xd8\xff torn")
    vocabulary = Vocabulary.parse(["dark <script>alert(1)</script>", "bright"])
    images = find_images([tmp_path / "photos"])
    folder = RunFolder(tmp_path / "out", {"method": "fake", "tasks": ["segment"]}, {"ovseg": "1"})
    writers = build_writers(("html",))
    with folder:
        write_class_files(folder, vocabulary, writers)
        run(BatchPredictor(FakeSegmenter(), vocabulary, writers), images, folder)
        assert write_run_files(folder, images, vocabulary, ("segment",), ("html",)) == [report.REPORT]
    return tmp_path / "out"


def test_the_page_is_whole_and_refers_to_nothing_outside(out: Path) -> None:
    content = (out / report.REPORT).read_text("utf-8")
    page = Page(content)
    assert not page.open
    assert "http://" not in content
    assert "https://" not in content
    sources = [each.get("src") or "" for each in page.all("img")]
    assert len(sources) == 3
    assert not page.all("link")
    assert [each.get("src") for each in page.all("script")] == [None]
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert picture.size == (32, 20)  # without the legend
    for each in page.all("a"):
        assert (out / unquote(each["href"] or "")).is_file()


def test_it_says_what_was_found_and_what_failed(out: Path) -> None:
    page = Page((out / report.REPORT).read_text("utf-8"))
    text = " ".join(page.text)
    for words in ("a<b>&\"'.png", "sub/ü 猫 #1%.png", "out of memory", "torn.jpg", "Failed (2)", "2 images"):
        assert words in text
    bars = [each for each in page.all("button") if each.get("class") == "bar"]
    assert len(bars) == 2
    keys = {each["data-name"]: each["data-k"] for each in page.all("article")}
    assert keys == {"a<b>&\"'.png": " 0 ", "sub/ü 猫 #1%.png": " 0 ", "z.png": " 1 "}
    assert len(page.all("script")) == 1  # the class's name did not become one


def test_pictures_stay_within_the_budget(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pictures() -> list[bytes]:
        page = Page((out / report.REPORT).read_text("utf-8"))
        assert len(page.all("article")) == 3
        return [base64.b64decode((each["src"] or "").partition(",")[2]) for each in page.all("img")]

    before = sum(map(len, pictures()))
    monkeypatch.setattr(report, "BUDGET", before - 1)
    images = find_images([out.parent / "photos"])
    vocabulary = Vocabulary.parse("dark, bright")
    with RunFolder(out, {"method": "fake", "tasks": ["segment"]}, {"ovseg": "1"}) as folder:
        report.write_report(folder, images, vocabulary)
    assert len(pictures()) == 2
    assert sum(map(len, pictures())) < before


def test_large_overlays_become_small(tmp_path: Path) -> None:
    save(tmp_path / "wide.jpg", hw=(600, 2000))
    small = report.thumbnail(tmp_path / "wide.jpg", (600, 1600), 200)
    with Image.open(io.BytesIO(small)) as picture:
        assert picture.size == (200, 75)
    assert len(small) < 8_000


def test_histogram_counts_images_pixels_and_objects() -> None:
    cat = {"id": 0, "name": "cat", "pixels": 25}
    records = [
        {"height": 10, "width": 10, "classes": [cat], "detections": [{"name": "cat"}, {"name": "dog"}]},
        {"height": 10, "width": 10, "classes": [cat], "counts": [{"name": "cat", "number": 3.0}]},
        {"height": 10, "width": 10, "anomaly": {"anomalous": True, "score": 1.0}},
    ]
    found = {each.name: (each.images, each.amount) for each in report.histogram(records, {"cat": (1, 2, 3)})}
    assert found["cat"] == (2, {"px": pytest.approx(50 / 300), "n": 4.0})
    assert found["dog"] == (1, {"n": 1.0})
    assert found["anomalous"] == (1, {})


DRIVE = """
import json, sys
from playwright.sync_api import sync_playwright
page_file, chromium, picture = sys.argv[1:]
flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=chromium, args=flags)
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url[:5]))
    page.goto("file://" + page_file)
    visible = lambda: [each.get_attribute("data-name") for each in page.query_selector_all("article:visible")]
    found = {"all": visible()}
    page.screenshot(path=picture, full_page=True)
    page.click(".bar >> nth=1")
    found["second"] = visible()
    found["text"] = page.inner_text("#shown")
    page.click(".bar >> nth=0")
    found["both"] = visible()
    page.click("#all")
    page.fill("#search", "SUB/")
    found["search"] = visible()
    found["widths"] = page.evaluate("[...document.images].map(each => each.naturalWidth)")
    browser.close()
print(json.dumps({**found, "said": said, "asked": sorted(set(asked))}))
"""


@pytest.mark.skipif(not os.access(CHROMIUM, os.X_OK), reason="no chromium to open the page with")
def test_the_filter_works_in_a_browser(out: Path, tmp_path: Path) -> None:
    pytest.importorskip("playwright")
    page = out / report.REPORT
    command = [sys.executable, "-c", DRIVE, str(page), CHROMIUM, str(tmp_path / "page.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["all"]) == 3
    assert found["second"] == ["z.png"]
    assert found["text"] == "1 of 3"
    assert found["both"] == []
    assert found["search"] == ["sub/ü 猫 #1%.png"]
    assert found["widths"] == [32, 32, 32]
    assert found["said"] == []
    assert set(found["asked"]) <= {"file:", "data:"}
    if keep := os.environ.get("OVSEG_SCREENSHOTS"):
        shutil.copy(tmp_path / "page.png", Path(keep) / "report.png")


def test_the_script_and_the_style_name_no_address() -> None:
    for name in ("report.js", "report.css"):
        assert not re.search("https?:|//[a-z]|@import|url\\(", report._asset(name))
