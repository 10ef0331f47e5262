"""The page: what stands where. No behaviour (see `handlers`, `wiring`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ovseg.demo.catalogue import Choice
from ovseg.demo.examples import Example
from ovseg.demo.gradio_offline import gr
from ovseg.demo.principal import STAGES
from ovseg.demo.settings import MAX_LETTERS, Settings

HEADER = """
<header class="head"><h1>ovseg</h1>
<p>Name anything in words, find it in pixels. Drop a photo, type what to look for, press Enter.</p></header>
"""
SPOT_HINT = '<p class="more">Click a point of the picture to see why.</p>'
#: What each tab shows, in a line.
TITLES = {
    "segment": ("Segment", "Every pixel gets the class that fits it best."),
    "detect": ("Detect", "Boxes with masks; background words compete, so that there may be nothing."),
    "count": ("Count", "A dot on each object."),
    "anomaly": ("Anomaly", "What is out of order: by words alone, or compared with images that are good."),
    "features": (
        "Features",
        "The patch features as colours: alike where features are. See what each network adds.",
    ),
    "compare": ("Compare", "Two methods with the same words; drag the line."),
}


@dataclass(frozen=True)
class Page:
    """The components that have behaviour.

    Attributes:
        inputs: in the order of `handlers.INPUTS`.
        pictures, legends: by tab, where it has one of its own.
        stages: pictures of the features tab.
        shown: the question whose answer is shown, as text.
    """

    image: Any
    gallery: Any
    words: Any
    background: Any
    threshold: Any
    opacity: Any
    method: Any
    encoder: Any
    other: Any
    colorblind: Any
    example: Any
    tab: Any
    good: Any
    shown: Any
    run: Any
    tabs: Any
    tab_items: dict[str, Any]
    pictures: dict[str, Any]
    legends: dict[str, Any]
    stages: tuple[Any, ...]
    slider: Any
    status: Any
    spot: Any
    alike: Any
    make_files: Any
    files: Any
    link: Any

    @property
    def inputs(self) -> list[Any]:
        """What a question depends on."""
        return [
            self.image, self.words, self.background, self.threshold, self.opacity, self.method, self.encoder,
            self.other, self.colorblind, self.example, self.tab, self.good, self.shown,
        ]  # fmt: skip

    @property
    def results(self) -> list[Any]:
        """What an answer may change."""
        return [
            *self.pictures.values(), *self.legends.values(), *self.stages, self.slider, self.status,
            self.spot, self.alike, self.files, self.link, self.shown,
        ]  # fmt: skip


def build_page(
    defaults: Settings,
    examples: Sequence[Example],
    methods: Sequence[Choice],
    encoders: Sequence[Choice],
) -> Page:
    """Lays the page out, within a `gr.Blocks`."""
    method_choices = [(each.label, each.name) for each in methods]
    encoder_choices = [(each.label, each.name) for each in encoders]
    gr.HTML(HEADER, padding=False)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            image = gr.Image(
                label="Image",
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard", "webcam"],
                height=270,
                buttons=["fullscreen"],
                elem_id="image",
            )
            gallery = gr.Gallery(
                [(str(each.path), each.title) for each in examples],
                label="Examples",
                columns=6,
                height=150,
                allow_preview=False,
                object_fit="cover",
                interactive=False,
                buttons=[],
                elem_id="examples",
                visible=bool(examples),
            )
            words = gr.Textbox(
                defaults.words,
                label="Words",
                info="Classes after commas; synonyms as dog = puppy | hound",
                lines=1,
                max_lines=6,
                max_length=MAX_LETTERS,
                placeholder="dog = puppy | hound, grass, sky",
                elem_id="words",
            )
            background = gr.Textbox(
                defaults.background,
                label="Background words",
                info="What is none of the classes; may stay empty",
                lines=1,
                max_lines=3,
                max_length=MAX_LETTERS,
                placeholder="wall, floor, sky",
                elem_id="background",
            )
            with gr.Row():
                threshold = gr.Slider(
                    0.0, 1.0, defaults.threshold, step=0.01, label="Threshold", min_width=130,
                    buttons=[], elem_id="threshold",
                )  # fmt: skip
                opacity = gr.Slider(
                    0.0, 1.0, defaults.opacity, step=0.05, label="Opacity", min_width=130,
                    buttons=[], elem_id="opacity",
                )  # fmt: skip
            with gr.Row():
                method = gr.Dropdown(
                    method_choices, value=defaults.method, label="Method", min_width=130, elem_id="method"
                )
                encoder = gr.Dropdown(
                    encoder_choices, value=defaults.encoder, label="Encoder", min_width=130, elem_id="encoder"
                )
            colorblind = gr.Checkbox(defaults.colorblind, label="Colours for colour-blind eyes")
            run = gr.Button("Run", variant="primary", elem_id="run")
        with gr.Column(scale=7, min_width=420):
            status = gr.HTML(elem_id="status", min_height=30, padding=False)
            pictures: dict[str, Any] = {}
            legends: dict[str, Any] = {}
            items: dict[str, Any] = {}
            with gr.Tabs(selected=defaults.tab, elem_id="tabs") as tabs:
                for name in ("segment", "detect", "count", "anomaly"):
                    with gr.Tab(TITLES[name][0], id=name) as items[name]:
                        gr.HTML(f'<p class="caption">{TITLES[name][1]}</p>', padding=False)
                        if name == "anomaly":
                            with gr.Accordion("Good images of the same thing (optional)", open=False):
                                good = gr.File(
                                    label="Good images",
                                    file_count="multiple",
                                    file_types=["image"],
                                    height=120,
                                )
                        pictures[name] = _result(f"{TITLES[name][0]} result", f"{name}-picture")
                        legends[name] = gr.HTML(elem_id=f"{name}-legend")
                with gr.Tab(TITLES["features"][0], id="features") as items["features"]:
                    gr.HTML(f'<p class="caption">{TITLES["features"][1]}</p>', padding=False)
                    with gr.Row():
                        stages = tuple(_result(f"{title} ({by})", f"stage-{by}", 250) for title, by in STAGES)
                with gr.Tab(TITLES["compare"][0], id="compare") as items["compare"]:
                    gr.HTML(f'<p class="caption">{TITLES["compare"][1]}</p>', padding=False)
                    other = gr.Dropdown(
                        method_choices,
                        value=defaults.other,
                        label="Compare with (right side)",
                        elem_id="other",
                    )
                    slider = gr.ImageSlider(
                        label="Left: the method, right: the other",
                        type="filepath",
                        format="jpeg",
                        interactive=False,
                        height=430,
                        max_height=430,
                        buttons=["fullscreen"],
                        elem_id="slider",
                    )
            with gr.Accordion("Explain a point", open=True, elem_id="explain"), gr.Row(equal_height=False):
                with gr.Column(scale=4, min_width=250):
                    spot = gr.HTML(SPOT_HINT, elem_id="spot")
                with gr.Column(scale=5, min_width=250):
                    alike = gr.Gallery(
                        label="Alike to the point",
                        columns=2,
                        height=230,
                        object_fit="contain",
                        format="jpeg",
                        visible=False,
                        interactive=False,
                        buttons=["fullscreen"],
                        elem_id="alike",
                    )
            with gr.Accordion("Downloads and link", open=False, elem_id="keep"):
                make_files = gr.Button("Make files of this answer", elem_id="make-files")
                files = gr.File(
                    label="Labels, overlay, COCO, scores",
                    file_count="multiple",
                    interactive=False,
                    visible=False,
                    elem_id="files",
                )
                link = gr.Textbox(
                    label="Link to these settings",
                    interactive=False,
                    lines=1,
                    buttons=["copy"],
                    elem_id="link",
                )
    return Page(
        image=image, gallery=gallery, words=words, background=background, threshold=threshold,
        opacity=opacity, method=method, encoder=encoder, other=other, colorblind=colorblind,
        example=gr.State(""), tab=gr.State(defaults.tab), good=good, run=run, tabs=tabs,
        tab_items=items, pictures=pictures, legends=legends, stages=stages, slider=slider,
        status=status, spot=spot, alike=alike, shown=gr.State(""), make_files=make_files,
        files=files, link=link,
    )  # fmt: skip


def _result(label: str, elem_id: str, height: int = 430) -> Any:
    """A picture that is shown and not uploaded."""
    return gr.Image(
        label=label,
        type="filepath",
        format="jpeg",
        interactive=False,
        height=height,
        buttons=["fullscreen", "download"],
        elem_id=elem_id,
        elem_classes="result",
    )
