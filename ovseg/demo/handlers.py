"""What happens: raw inputs of a browser in, updates of the page out.

Inputs come unprocessed (`preprocess=False`), so that a damaged upload meets our reader and its message, not
Gradio's. They are therefore checked here: settings by `Settings`, files by `uploaded`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ovseg.answers import Answers, Task
from ovseg.demo import drawing
from ovseg.demo.catalogue import encoders, methods
from ovseg.demo.engine import Engine, Picture
from ovseg.demo.examples import Example
from ovseg.demo.explain import explain, heat_picture
from ovseg.demo.files import write_files
from ovseg.demo.gradio_offline import gr
from ovseg.demo.page import SPOT_HINT, Page
from ovseg.demo.principal import STAGES, principal_pictures
from ovseg.demo.settings import TASK_TABS, Settings
from ovseg.errors import ConfigError, ImageError, OvsegError, unknown_name

log = logging.getLogger(__name__)

#: Names of `Page.inputs`, in their order.
INPUTS = (
    "image", "words", "background", "threshold", "opacity", "method", "encoder", "other", "colorblind",
    "example", "tab", "good", "shown",
)  # fmt: skip
Updates = dict[Any, Any]
NO_IMAGE = "Choose an example, or drop, paste or photograph an image of your own."


@dataclass(frozen=True)
class Question:
    """Inputs, checked."""

    picture: Picture
    settings: Settings
    good: tuple[Picture, ...]

    @property
    def text(self) -> str:
        """All that the page's answer depends on."""
        return repr((self.picture.key, self.settings, [each.key for each in self.good]))


def named(raw: Sequence[Any]) -> dict[str, Any]:
    """Values of `Page.inputs` by name."""
    return dict(zip(INPUTS, raw, strict=True))


def task_of(settings: Settings) -> Task:
    """What the tab asks: features and comparisons are of segmentation."""
    return settings.tab if settings.tab in TASK_TABS else "segment"


class Handlers:
    """Behaviour of a page.

    Args:
        engine: what answers.
        page: its components.
        defaults: settings of a page without a query.
        examples: of the gallery, in its order.
        uploads: the folder that uploads are in; no other file is ever read.
        downloads: the folder for files.
    """

    def __init__(
        self,
        engine: Engine,
        page: Page,
        *,
        defaults: Settings,
        examples: Sequence[Example],
        uploads: Path,
        downloads: Path,
    ) -> None:
        self.engine = engine
        self.page = page
        self.defaults = defaults
        self.examples = list(examples)
        self.uploads = uploads.resolve()
        self.downloads = downloads
        self._writing = Lock()

    def run(self, request: gr.Request, progress=gr.Progress(), *raw: Any) -> Updates:  # noqa: B008
        """Answers what the page asks, in the tab that is shown. `raw` are the values of `Page.inputs`."""
        given, start = named(raw), time.perf_counter()

        def answer() -> Updates:
            question = self.question(given)
            if question.text == given["shown"]:
                # Nothing was changed, though a field lost the focus: what is explained stays.
                return {self.page.shown: question.text}
            updates = self._answer(question, lambda share, text: progress(share, desc=text), start)
            link = self.link(question.settings, request)
            return updates | {self.page.link: link, self.page.shown: question.text}

        cleared = self._cleared(given["tab"])
        if given["image"] is None:
            return cleared | {self.page.status: f'<p class="status">{NO_IMAGE}</p>'}
        return self._told(answer, cleared)

    def spot(self, event: gr.SelectData, *raw: Any) -> Updates:
        """Explains the point that was clicked."""

        def answer() -> Updates:
            question = self.question(named(raw))
            picture, settings = question.picture, question.settings
            x, y = (int(each) for each in event.index)
            found = explain(self.engine, picture, settings, task_of(settings), (x, y))
            heat = [(heat_picture(picture.shown, each, (x, y)), title) for title, each in found.alike.items()]
            return {
                self.page.spot: drawing.bars_of(found),
                self.page.alike: gr.Gallery(heat, visible=True),
            }

        return self._told(answer, {})

    def files(self, progress=gr.Progress(), *raw: Any) -> Updates:  # noqa: B008
        """Writes the files of the answer that is shown."""

        def answer() -> Updates:
            given = named(raw)
            if given["image"] is None:
                raise ImageError(NO_IMAGE)
            progress(0.3, desc="Writing files")
            return {self.page.files: gr.File(self.written(self.question(given)), visible=True)}

        return self._told(answer, {self.page.files: gr.File(None, visible=False)})

    def load(self, request: gr.Request) -> Updates:
        """The page as its link says."""
        page = self.page
        settings, problems = Settings.from_query(dict(request.query_params), self.defaults)
        known = {"encoder": [each.name for each in encoders()]}
        known["method"] = known["other"] = [each.name for each in methods(known["encoder"][0])]
        for field, names in known.items():
            if getattr(settings, field) not in names:
                problems.append(str(unknown_name(f"{field} in the link", getattr(settings, field), names)))
                settings = replace(settings, **{field: getattr(self.defaults, field)})
        by_name = {each.path.name: each for each in self.examples}
        chosen = by_name.get(settings.example) or next(iter(self.examples), None)
        if settings.example not in ("", *by_name):
            problems.append(f"there is no example '{settings.example}'")
        if chosen is not None:
            settings = replace(settings, example=chosen.path.name)
            if not settings.words:
                settings = replace(settings, words=chosen.words, background=chosen.background)
        if problems:
            gr.Warning(escape("; ".join(problems)), duration=None)
        return {
            page.image: None if chosen is None else str(chosen.path),
            page.words: settings.words,
            page.background: settings.background,
            page.threshold: settings.threshold,
            page.opacity: settings.opacity,
            page.encoder: settings.encoder,
            page.method: self._method_list(settings.encoder, settings.method),
            page.other: self._method_list(settings.encoder, settings.other),
            page.colorblind: settings.colorblind,
            page.example: settings.example,
            page.tab: settings.tab,
            page.tabs: gr.Tabs(selected=settings.tab),
        }

    def choose(self, event: gr.SelectData) -> Updates:
        """An example of the gallery."""
        page, chosen = self.page, self.examples[int(event.index)]
        return {
            page.image: str(chosen.path),
            page.words: chosen.words,
            page.background: chosen.background,
            page.example: chosen.path.name,
            page.tab: chosen.tab,
            page.tabs: gr.Tabs(selected=chosen.tab),
        }

    def new_encoder(self, encoder, method, other) -> Updates:
        """Methods whose networks are here come first, for another encoder."""
        if encoder not in [each.name for each in encoders()]:
            return {self.page.method: method}
        page = self.page
        return {
            page.method: self._method_list(encoder, method),
            page.other: self._method_list(encoder, other),
        }

    def question(self, given: Mapping[str, Any]) -> Question:
        """Inputs by name, checked and read.

        Raises:
            ConfigError: a setting of another type or range.
            ImageError: an image is no upload, or cannot be read.
        """
        settings = Settings.from_inputs(**given)
        good = given.get("good")
        files = good if settings.tab == "anomaly" and isinstance(good, list) else []
        picture = self.engine.read(self.uploaded(given["image"]))
        return Question(picture, settings, tuple(self.engine.read(self.uploaded(each)) for each in files))

    def uploaded(self, file: Any) -> Path:
        """The path of an upload, and of nothing else on this machine.

        Raises:
            ImageError: it is something else.
        """
        named = file.get("path") if isinstance(file, Mapping) else None
        if not isinstance(named, str):
            raise ImageError("the image is no upload: send a file (handle_file in a Python client)")
        path = Path(named).resolve()
        if self.uploads not in path.parents or not path.is_file():
            raise ImageError(f"'{path.name}' is no upload of this page; choose the image again")
        return path

    def at_own_size(self, question: Question) -> Answers:
        """What a question's task answers at the size of `Picture.pixels`, as files have it."""
        picture, settings = question.picture, question.settings
        if settings.tab == "anomaly" and question.good:
            found = self.engine.compare_with_good(picture, question.good, settings.encoder)
            return Answers(picture.hw, settings.vocabulary().names, anomaly=found)
        task = task_of(settings)
        return self.engine.ask(picture, settings, task, scores=task == "segment").answers

    def written(self, question: Question) -> list[str]:
        """Files of a question's answer."""
        answers = self.at_own_size(question)
        with self._writing:
            task = task_of(question.settings)
            paths = write_files(self.downloads, question.picture, answers, task, question.settings)
        return [str(each) for each in paths]

    def link(self, settings: Settings, request: gr.Request | None) -> str:
        """The page's own address with the settings in its query."""
        headers = {} if request is None else request.headers
        address = str(headers.get("referer") or headers.get("origin") or "/")
        return f"{address.split('?')[0].split('#')[0]}?{settings.query(self.defaults)}"

    def _answer(self, question: Question, note: Callable[[float, str], Any], start: float) -> Updates:
        page, picture, settings, tab = self.page, question.picture, question.settings, question.settings.tab
        asked = None
        fresh: Updates = {
            page.spot: SPOT_HINT,
            page.alike: gr.Gallery([], visible=False),
            page.files: gr.File(None, visible=False),
        }
        if tab == "features":
            fresh |= self._features(question, note)
        elif tab == "compare":
            pair = []
            for method in (settings.method, settings.other):
                asked = self.engine.ask(
                    picture, replace(settings, method=method), "segment", size_hw=picture.shown_hw, note=note
                )
                pair.append(drawing.picture_of(picture.shown, asked.answers, "segment", settings))
            fresh[page.slider] = tuple(pair)
        elif tab == "anomaly" and question.good:
            self.engine.compare_with_good(picture, question.good, settings.encoder, note)
            fresh |= self._shown(picture.pixels, self.at_own_size(question), settings)
        else:
            task = task_of(settings)
            asked = self.engine.ask(picture, settings, task, size_hw=picture.shown_hw, note=note)
            fresh |= self._shown(picture.shown, asked.answers, settings)
        fresh[page.status] = drawing.status_of(picture, asked, settings, time.perf_counter() - start)
        return fresh

    def _shown(self, pixels: np.ndarray, answers: Answers, settings: Settings) -> Updates:
        """An answer in its tab."""
        task, page = task_of(settings), self.page
        return {
            page.pictures[task]: drawing.picture_of(pixels, answers, task, settings),
            page.legends[task]: drawing.legend_of(answers, task, settings),
        }

    def _features(self, question: Question, note: Callable[[float, str], Any]) -> Updates:
        """The stages whose networks are here, as colours."""
        encoder = question.settings.encoder
        here = {each.name for each in methods(encoder) if not each.missing}
        shown = [by for _, by in STAGES if by in here]
        features = [self.engine.encoded(question.picture, by, encoder, note)[0] for by in shown]
        if not features:
            raise ConfigError(f"no stage's networks are here for {encoder}")
        pictures = dict(zip(shown, principal_pictures(features, question.picture.shown_hw), strict=True))
        return {part: pictures.get(by) for part, (_, by) in zip(self.page.stages, STAGES, strict=True)}

    def _method_list(self, encoder: str, chosen: Any) -> Any:
        return gr.Dropdown(choices=[(each.label, each.name) for each in methods(encoder)], value=chosen)

    def _cleared(self, tab: Any) -> Updates:
        """The tab without an answer."""
        page = self.page
        empty: Updates = {page.shown: ""}
        if tab in page.pictures:
            return empty | {page.pictures[tab]: None, page.legends[tab]: ""}
        return empty | ({page.slider: None} if tab == "compare" else dict.fromkeys(page.stages))

    def _told(self, answer: Callable[[], Updates], otherwise: Updates) -> Updates:
        """What an answer changes; where there is none, the reason, in the page."""
        try:
            return answer()
        except OvsegError as error:
            return otherwise | {self.page.status: drawing.problem_of(str(error))}
        except Exception as error:
            log.exception("the page asked something that failed")
            message = f"something went wrong here ({type(error).__name__}); the server's log says more"
            return otherwise | {self.page.status: drawing.problem_of(message)}
