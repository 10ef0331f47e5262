"""The named endpoints `/segment`, `/detect`, `/count`, `/anomaly`: the page's answers for programs."""

from __future__ import annotations

import logging
from typing import Any

from ovseg.answers import Task
from ovseg.demo import drawing
from ovseg.demo.gradio_offline import gr
from ovseg.demo.handlers import Handlers
from ovseg.errors import OvsegError

log = logging.getLogger(__name__)


class Endpoints:
    """Behind the page's back: each gives the overlay, the files, and the numbers.

    Args:
        handlers: of the page, which check and answer.
    """

    def __init__(self, handlers: Handlers) -> None:
        self.handlers = handlers

    def segment(self, image, words, background, threshold, method, encoder):
        """A class for every pixel: overlay, files (labels, COCO, scores), shares by class."""
        return self._answer("segment", image, words, background, threshold, method, encoder)

    def detect(self, image, words, background, threshold, method, encoder):
        """Boxes with masks: overlay, files (COCO), objects and their numbers."""
        return self._answer("detect", image, words, background, threshold, method, encoder)

    def count(self, image, words, background, threshold, method, encoder):
        """How many of each: overlay, files (densities), numbers by class."""
        return self._answer("count", image, words, background, threshold, method, encoder)

    def anomaly(self, image, words, background, threshold, method, encoder, good):
        """What is out of order, by words or by good images: overlay, files (map), score and verdict."""
        return self._answer("anomaly", image, words, background, threshold, method, encoder, good)

    def _answer(
        self, task: Task, image: Any, words: Any, background: Any, threshold: Any, method: Any, encoder: Any,
        good: Any = None,
    ) -> tuple[Any, list[str], dict[str, Any]]:  # fmt: skip
        handlers = self.handlers
        opacity = handlers.defaults.opacity
        try:
            question = handlers.question(
                image, words, background, threshold, opacity, method, encoder, None, None, None, task, good
            )
            answers = handlers.at_own_size(question)
            picture = drawing.picture_of(question.picture.pixels, answers, task, question.settings)
            return picture, handlers.written(question), drawing.summary_of(answers, task)
        except OvsegError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:
            log.exception("an endpoint was asked something that failed")
            message = f"something went wrong here ({type(error).__name__}); the server's log says more"
            raise gr.Error(message, print_exception=False) from None
