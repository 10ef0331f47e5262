"""The page in a real browser: choose, type, look, click, download.

With `OVSEG_SCREENSHOTS=1` it keeps the pictures of `docs/images/demo-*.png`.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 40_000

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: apt-get install chromium"),
    pytest.mark.enable_socket,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture
def page(browser, address: str) -> Iterator[Page]:
    """A new visitor; every request and every complaint of the page is kept."""
    opened = browser.new_page(viewport={"width": 1360, "height": 1040})
    opened.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    opened.requests, opened.complaints = [], []
    opened.on("request", lambda request: opened.requests.append(request.url))
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    yield opened
    assert opened.complaints == []
    local = (address, "data:", "blob:")
    assert [
        url for url in opened.requests if not url.startswith(local)
    ] == []  # no request leaves the machine
    opened.close()


def keep(page: Page, name: str) -> None:
    """A screenshot for the docs, where the environment asks for them."""
    if os.environ.get("OVSEG_SCREENSHOTS"):
        page.mouse.move(5, 5)
        time.sleep(1.5)  # spinners fade
        with Image.open(io.BytesIO(page.screenshot(full_page=True))) as picture:
            small = picture.convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG)
        small.save(ROOT / f"docs/images/demo-{name}.png", optimize=True)


def pixels(page: Page, selector: str, tmp_path: Path) -> np.ndarray:
    """A picture of the page, as it came from the server."""
    source = page.locator(f"{selector} img").first.get_attribute("src")
    path = tmp_path / "picture"
    path.write_bytes(page.request.get(source).body())
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"), int)


def next_answer(page: Page, before: str) -> str:
    """The status line, once it is another."""
    expect(page.locator("#status")).not_to_have_text(before)
    return page.inner_text("#status")


def test_a_visit(page: Page, address: str, tmp_path: Path) -> None:
    page.goto(address)
    page.wait_for_selector("#segment-picture img")
    first = page.inner_text("#status")
    assert "proxyclip" in first

    page.locator("#examples .thumbnail-item").nth(1).click()  # the farm
    expect(page.locator("#words textarea")).to_have_value("horse, cow, sheep, grass")
    expect(page.locator("#segment-legend")).to_contain_text("horse")
    page.fill("#words textarea", "horse = pony, sheep = lamb, grass = meadow")
    page.press("#words textarea", "Enter")
    expect(page.locator("#segment-legend")).not_to_contain_text("cow")
    expect(page.locator("#status")).to_contain_text("features reused")
    keep(page, "segment")
    shown = pixels(page, "#segment-picture", tmp_path)
    given = pixels(page, "#image", tmp_path)
    assert shown.shape[:2] == (540, 720)
    given = np.array(Image.fromarray(given.astype(np.uint8)).resize((720, 540)), int)
    assert (np.abs(shown - given).max(axis=-1) > 40).mean() > 0.2  # a mask that is not empty

    page.fill("#threshold input[type=number]", "1")
    page.press("#threshold input[type=number]", "Enter")
    page.dispatch_event("#threshold input[type=range]", "pointerup")
    expect(page.locator("#segment-legend")).to_contain_text("(no class)")
    unsure = pixels(page, "#segment-picture", tmp_path)
    assert np.abs(unsure - shown).max() > 40

    box = page.locator("#segment-picture img").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    expect(page.locator("#spot ul.bars li")).to_have_count(3)
    expect(page.locator("#alike img")).to_have_count(2)

    page.get_by_text("Downloads and link").click()
    page.click("#make-files")
    page.wait_for_selector("#files a")
    with page.expect_download() as arriving:
        page.locator("#files a", has_text="KB").or_(page.locator("#files a")).last.click()
    arriving.value.save_as(tmp_path / "farm.json")
    assert json.loads((tmp_path / "farm.json").read_text())["words"].startswith("horse = pony")
    link = page.input_value("#link textarea, #link input")
    assert re.search(r"\?words=horse.*threshold=1.*example=farm\.jpg", link)


@pytest.mark.parametrize("tab", ["detect", "count", "anomaly"])
def test_a_link_opens_a_task(page: Page, address: str, tab: str, tmp_path: Path) -> None:
    words, example = {
        "detect": ("laptop, cat, pizza, bicycle, orange", "desk.jpg"),
        "count": ("donut&background=wood, water", "many_1.jpg"),
        "anomaly": ("handbag", "one_1.jpg"),
    }[tab]
    page.goto(f"{address}?words={words}&example={example}&tab={tab}&opacity=0.6")
    page.wait_for_selector(f"#{tab}-picture img")
    assert pixels(page, f"#{tab}-picture", tmp_path).std() > 20
    assert page.inner_text(f"#{tab}-legend")
    keep(page, tab)


def test_stages_and_comparison(page: Page, address: str, tmp_path: Path) -> None:
    page.goto(f"{address}?tab=features")
    for method in ("clip", "proxyclip", "trident"):
        page.wait_for_selector(f"#stage-{method} img")
    keep(page, "features")
    page.get_by_role("tab", name="Compare").click()
    page.wait_for_selector("#slider img")
    keep(page, "compare")
    page.get_by_role("tab", name="Segment").click()
    page.wait_for_selector("#segment-picture img")
    box = page.locator("#segment-picture img").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.66, box["y"] + box["height"] * 0.4)
    expect(page.locator("#spot ul.bars li").first).to_contain_text("bear")
    expect(page.locator("#alike img")).to_have_count(2)
    keep(page, "explain")


def test_what_is_wrong_in_a_link_is_told(page: Page, address: str) -> None:
    page.goto(f"{address}?words=cat&threshold=7&method=nothing")
    expect(page.locator(".toast-body")).to_contain_text("threshold is 7: expected 0 to 1")
    expect(page.locator(".toast-body")).to_contain_text("unknown method")
    expect(page.locator("#words textarea")).to_have_value("cat")


def test_problems_are_told_in_the_page(page: Page, address: str, tmp_path: Path) -> None:
    page.goto(address)
    page.wait_for_selector("#segment-picture img")
    page.fill("#words textarea", "cat, cat")
    page.press("#words textarea", "Enter")
    expect(page.locator("#status [role=alert]")).to_contain_text("comes twice")
    page.fill("#words textarea", "cat")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    page.locator("#image").get_by_label("Remove Image").click()
    page.locator("#image input[type=file]").first.set_input_files(tmp_path / "bad.jpg")
    expect(page.locator("#status [role=alert]")).to_contain_text("bad.jpg: damaged JPEG")
    assert "Traceback" not in page.content()
