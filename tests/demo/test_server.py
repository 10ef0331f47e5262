"""The page as a server: what strangers may send, the named endpoints, many users at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from ovseg.demo.handlers import Handlers
from ovseg.demo.serve import Served, build_parser, main
from ovseg.errors import ImageError
from ovseg.outputs.label_files import read_labels

pytestmark = [
    pytest.mark.enable_socket,
    # Gradio leaves event loops and sockets to the garbage collector, and its queue is older than pandas 3.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
]
DEMO = Path(__file__).parents[2] / "demo"
PICNIC = DEMO / "images/picnic.jpg"
WORDS = "bear, orange, grass"


@pytest.fixture(scope="module")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(address, verbose=False, download_files=str(tmp_path_factory.mktemp("client")))


@pytest.fixture(scope="module")
def handlers(served: Served) -> Handlers:
    return served.handlers


@pytest.fixture
def upload(handlers: Handlers) -> Callable[[Path], dict[str, Any]]:
    """As a browser's upload arrives."""

    def send(path: Path) -> dict[str, Any]:
        place = handlers.uploads / "0" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
        return {"path": str(place), "meta": {"_type": "gradio.FileData"}}

    return send


def asked(handlers: Handlers, image: Any, **changes: Any) -> dict[Any, Any]:
    """What the page's Run button changes."""
    given = {
        "image": image, "words": WORDS, "background": "", "threshold": 0, "opacity": 0.5,
        "method": "maskclip", "encoder": "bundled", "other": "clip", "colorblind": False, "example": "",
        "tab": "segment", "good": None, "shown": "",
    } | changes  # fmt: skip
    request = gr.Request(headers={"referer": "http://127.0.0.1:1/sub/?old=1"})
    return handlers.run(request, lambda *args, **options: None, *given.values())


def test_every_tab_answers(handlers: Handlers, upload: Callable[[Path], Any]) -> None:
    page, image = handlers.page, upload(PICNIC)
    for tab in ("segment", "detect", "count", "anomaly"):
        updates = asked(handlers, image, tab=tab)
        assert updates[page.pictures[tab]].width == 720
        assert updates[page.legends[tab]]
        assert "maskclip" in updates[page.status]
    assert all(
        each.shape == (549, 720, 3) for each in map(asked(handlers, image, tab="features").get, page.stages)
    )
    left, right = asked(handlers, image, tab="compare")[page.slider]
    assert np.abs(np.asarray(left, int) - np.asarray(right, int)).max() > 50
    link = asked(handlers, image, threshold=0.25, tab="count")[page.link]
    assert link == (
        "http://127.0.0.1:1/sub/?words=bear%2C+orange%2C+grass&threshold=0.25&opacity=0.5&method=maskclip"
        "&other=clip&tab=count"
    )


def test_the_same_question_changes_nothing(handlers: Handlers, upload: Callable[[Path], Any]) -> None:
    image = upload(PICNIC)
    shown = asked(handlers, image)[handlers.page.shown]
    assert asked(handlers, image, shown=shown) == {handlers.page.shown: shown}
    assert asked(handlers, image, shown=shown, opacity=0.6)[handlers.page.shown] != shown
    assert asked(handlers, image, shown=shown, words="")[handlers.page.shown] == ""


def test_good_images_make_a_verdict(handlers: Handlers, upload: Callable[[Path], Any]) -> None:
    good = [upload(DEMO / f"images/{name}.jpg") for name in ("farm", "beach")]
    updates = asked(handlers, upload(PICNIC), tab="anomaly", good=good)
    assert any(word in updates[handlers.page.legends["anomaly"]] for word in ("anomalous", "normal"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xd8\xff\xe0garbage", "damaged JPEG"), (b"", "empty"), (b"<svg/>", "not an image")],
)
def test_a_bad_upload_is_told_in_the_page(
    handlers: Handlers, upload: Callable[[Path], Any], tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "bad.jpg").write_bytes(content)
    updates = asked(handlers, upload(tmp_path / "bad.jpg"))
    assert message in updates[handlers.page.status]
    assert 'role="alert"' in updates[handlers.page.status]
    assert updates[handlers.page.pictures["segment"]] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": ""}, "no words"),
        ({"words": "a, a"}, "comes twice"),
        ({"threshold": "x"}, "expected a number"),
        ({"method": "trident2"}, "Did you mean &#x27;trident&#x27;"),
        ({"encoder": "clip_vith14_dfn"}, "clip_vith14_dfn is not on this machine"),
        ({"tab": "nothing"}, "unknown tab"),
    ],
)
def test_bad_settings_are_told_in_the_page(
    handlers: Handlers, upload: Callable[[Path], Any], changes: dict[str, Any], message: str
) -> None:
    assert message in asked(handlers, upload(PICNIC), **changes)[handlers.page.status]


def test_failures_of_ours_show_no_trace(
    handlers: Handlers, upload: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(handlers.engine, "ask", fail)
    status = asked(handlers, upload(PICNIC))[handlers.page.status]
    assert "something went wrong here (ZeroDivisionError)" in status
    assert "secret" not in status


def test_only_uploads_are_read(handlers: Handlers, tmp_path: Path) -> None:
    inside = handlers.uploads / "link.jpg"
    inside.unlink(missing_ok=True)
    inside.symlink_to(PICNIC)
    for path in (PICNIC, handlers.uploads / "../../etc/passwd", handlers.uploads, inside):
        with pytest.raises(ImageError, match="no upload"):
            handlers.uploaded({"path": str(path)})
    for other in (None, "x", {"path": 1}, {"url": "http://127.0.0.1"}):
        with pytest.raises(ImageError, match="no upload"):
            handlers.uploaded(other)


def test_a_link_sets_the_page(handlers: Handlers) -> None:
    query = {
        "words": "cat = kitten",
        "threshold": "0.5",
        "tab": "count",
        "example": "farm.jpg",
        "method": "xx",
    }
    with pytest.warns(UserWarning, match="unknown method in the link"):
        updates = handlers.load(gr.Request(query_params=query))
    page = handlers.page
    assert updates[page.words] == "cat = kitten"
    assert updates[page.threshold] == 0.5
    assert updates[page.tab] == "count"
    assert Path(updates[page.image]).name == "farm.jpg"
    plain = handlers.load(gr.Request(query_params={}))
    assert plain[page.words].startswith("bear")


def test_arguments(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert build_parser().parse_args([]).host == "127.0.0.1"
    assert main(["--folder", str(tmp_path), "--concurrency", "0"]) == 2
    assert "--concurrency is 0" in capsys.readouterr().err
    assert main(["--folder", str(tmp_path), "--method", "nothing"]) == 2
    assert "unknown method" in capsys.readouterr().err


def test_endpoints_answer_a_python_client(client: Client) -> None:
    overlay, files, numbers = client.predict(
        handle_file(PICNIC), WORDS, method="maskclip", api_name="/segment"
    )
    with Image.open(overlay) as picture:
        assert picture.size == (336, 256)
    by_name = {Path(each).name: Path(each) for each in files}
    labels, names, _ = read_labels(by_name["picnic_labels.png"])
    assert names == WORDS.split(", ")
    assert numbers["shares"]["grass"] == pytest.approx((labels == 2).mean())
    _, files, numbers = client.predict(handle_file(PICNIC), "bear", api_name="/detect", method="maskclip")
    coco = json.loads(next(Path(each) for each in files if each.endswith("coco.json")).read_text())
    assert len(coco["annotations"]) == numbers["numbers"]["bear"]
    _, _, numbers = client.predict(handle_file(PICNIC), "bear", api_name="/count", method="maskclip")
    assert numbers["numbers"]["bear"] >= 1
    good = [handle_file(DEMO / f"images/{name}.jpg") for name in ("farm", "beach")]
    _, _, numbers = client.predict(handle_file(PICNIC), "thing", good=good, api_name="/anomaly")
    assert numbers["anomalous"] in (True, False)


def test_a_client_is_told_what_is_wrong(client: Client, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    with pytest.raises(Exception, match=r"bad\.png: damaged PNG"):
        client.predict(handle_file(tmp_path / "bad.png"), WORDS, api_name="/segment")
    with pytest.raises(Exception, match="no words"):
        client.predict(handle_file(PICNIC), "", api_name="/segment")


def test_nothing_else_is_readable(address: str, served: Served) -> None:
    for path in ("/etc/passwd", str(DEMO / "app.py"), str(Path(gr.__file__).parent / "blocks.py")):
        assert httpx.get(f"{address}gradio_api/file={path}").status_code in (403, 404)
    assert served.blocks.server_name == "127.0.0.1"
    names = {
        each["api_name"]
        for each in served.blocks.config["dependencies"]
        if each["api_visibility"] == "public"
    }
    assert names == {"segment", "detect", "count", "anomaly"}


def test_twenty_users_at_once(address: str, served: Served, tmp_path: Path) -> None:
    for number in range(20):
        size = (96 + number, 64)
        noise = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")

    def visit(number: int) -> dict[str, Any]:
        mine = Client(address, verbose=False, download_files=False)
        image = handle_file(tmp_path / f"{number}.png")
        return mine.predict(image, f"cat, thing {number}", method="maskclip", api_name="/segment")[2]

    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(visit, range(20)))
    for number, numbers in enumerate(found):
        assert set(numbers["shares"]) <= {"cat", f"thing {number}"}  # everybody has their own words back
        assert sum(numbers["shares"].values()) == pytest.approx(1)
    assert len(served.engine.models) <= 4
