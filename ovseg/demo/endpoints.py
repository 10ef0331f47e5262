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
        return self._answer("segment", locals())

    def detect(self, image, words, background, threshold, method, encoder):
        """Boxes with masks: overlay, files (COCO), objects and their numbers."""
        return self._answer("detect", locals())

    def count(self, image, words, background, threshold, method, encoder):
        """How many of each: overlay, files (densities), numbers by class."""
        return self._answer("count", locals())

    def anomaly(self, image, words, background, threshold, method, encoder, good=None):
        """What is out of order, by words or by good images: overlay, files (map), score and verdict."""
        return self._answer("anomaly", locals())

    def _answer(self, task: Task, given: dict[str, Any]) -> tuple[Any, list[str], dict[str, Any]]:
        handlers = self.handlers
        try:
            question = handlers.question({**given, "tab": task})
            answers = handlers.at_own_size(question)
            picture = drawing.picture_of(question.picture.pixels, answers, task, question.settings)
            return picture, handlers.written(question), drawing.summary_of(answers, task)
        except OvsegError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception as error:
            log.exception("an endpoint was asked something that failed")
            message = f"something went wrong here ({type(error).__name__}); the server's log says more"
            raise gr.Error(message, print_exception=False) from None
