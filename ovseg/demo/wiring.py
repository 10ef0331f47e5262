"""Which event calls which handler, with what in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ovseg.demo.endpoints import Endpoints
from ovseg.demo.gradio_offline import gr
from ovseg.demo.handlers import Handlers
from ovseg.demo.page import Page

#: Everything that asks a model waits in one queue.
MODEL: dict[str, Any] = {"concurrency_id": "model", "preprocess": False}
PRIVATE: dict[str, Any] = {"api_visibility": "private"}


def wire(blocks: gr.Blocks, page: Page, handlers: Handlers, *, concurrency: int) -> None:
    """Connects the page's components with the handlers, within its `gr.Blocks`.

    Args:
        blocks: the page.
        page: its components.
        handlers: its behaviour.
        concurrency: questions answered at a time; the others wait.
    """
    pictures = [*page.pictures.values(), *page.stages, page.slider]
    run: dict[str, Any] = {
        "fn": handlers.run,
        "inputs": page.inputs,
        "outputs": page.results,
        "show_progress_on": pictures,
        "concurrency_limit": concurrency,
        **MODEL,
        **PRIVATE,
    }
    gr.on(
        [
            page.image.change, page.words.submit, page.background.submit, page.method.input,
            page.other.input, page.colorblind.input, page.good.change, page.run.click,
        ],
        trigger_mode="always_last",
        **run,
    )  # fmt: skip
    # A field that loses the focus because the picture is clicked must not cover it: the click would be lost.
    gr.on(
        [page.words.blur, page.background.blur, page.threshold.release, page.opacity.release],
        trigger_mode="always_last",
        show_progress="hidden",
        **run,
    )
    page.image.input(lambda: "", None, page.example, queue=False, **PRIVATE)
    page.encoder.input(
        handlers.new_encoder,
        [page.encoder, page.method, page.other],
        [page.method, page.other],
        preprocess=False,
        queue=False,
        **PRIVATE,
    ).then(**run)
    for name, item in page.tab_items.items():
        item.select(_says(name), None, page.tab, queue=False, **PRIVATE).then(**run)
    settings = [
        page.image, page.words, page.background, page.threshold, page.opacity, page.method, page.encoder,
        page.other, page.colorblind, page.example, page.tab, page.tabs,
    ]  # fmt: skip
    # In the queue, for only there does a warning about the link reach the page.
    blocks.load(handlers.load, None, settings, show_progress="hidden", **PRIVATE)
    page.gallery.select(
        handlers.choose, None, settings, queue=False, show_progress="hidden", preprocess=False, **PRIVATE
    ).then(**run)
    for picture in page.pictures.values():
        picture.select(
            handlers.spot,
            page.inputs,
            [page.spot, page.alike, page.status],
            concurrency_limit=concurrency,
            show_progress_on=page.alike,
            **MODEL,
            **PRIVATE,
        )
    page.make_files.click(
        handlers.files,
        page.inputs,
        [page.files, page.status],
        concurrency_limit=concurrency,
        **MODEL,
        **PRIVATE,
    )


def add_endpoints(page: Page, endpoints: Endpoints, *, concurrency: int) -> None:
    """The named endpoints, within the page's `gr.Blocks`: hidden components that only programs reach."""
    with gr.Group(visible=False):
        overlay = gr.Image(label="overlay", type="filepath", format="png", interactive=False)
        files = gr.File(label="files", file_count="multiple", interactive=False)
        numbers = gr.JSON(label="numbers")
        buttons = {name: gr.Button(name) for name in ("segment", "detect", "count", "anomaly")}
    inputs = [page.image, page.words, page.background, page.threshold, page.method, page.encoder]
    for name, button in buttons.items():
        button.click(
            getattr(endpoints, name),
            [*inputs, page.good] if name == "anomaly" else inputs,
            [overlay, files, numbers],
            api_name=name,
            concurrency_limit=concurrency,
            **MODEL,
        )


def _says(name: str) -> Callable[[], str]:
    return lambda: name
