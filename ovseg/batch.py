"""One callable behind every way to run: columns of images in, columns of small results out.

`tools/infer.py`, the models of `ovseg.mm` and any engine (Ray Data, Spark, Daft) ask the same object, so they
answer the same.
"""

from __future__ import annotations

import errno
import gc
import io
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ovseg.answers import Answers, Task
from ovseg.errors import (
    CheckpointError,
    ConfigError,
    ImageError,
    MissingDependencyError,
    ShapeError,
    VocabularyError,
)
from ovseg.images import BinaryStream, Limits, read_image
from ovseg.records import Record, record_of

#: Errors of the model that no other image would be spared.
SETUP_ERRORS = (VocabularyError, ConfigError, CheckpointError, MissingDependencyError)
#: Errors of the disk that no other image would be spared.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
#: Columns that hold an image, and how it is read.
INPUTS = ("pixels", "bytes", "path")


@runtime_checkable
class Predictor(Protocol):
    """What is asked: an inferencer, or anything that answers like one."""

    def answers(
        self,
        images: Iterable[Any],
        classes: Any,
        *,
        tasks: Sequence[Task],
        batch_size: int | None,
        templates: Any,
        **given: Any,
    ) -> Iterator[Answers]:
        """Results in order."""


@dataclass(frozen=True)
class Writer:
    """A kind of output.

    Attributes:
        kind: its key in the records.
        folder: below the run's folder.
        suffix: of its files.
        write: `(stream, image, answers)`.
    """

    kind: str
    folder: str
    suffix: str
    write: Callable[[BinaryStream, np.ndarray, Answers], None]


@dataclass
class Row:
    """What became of one image.

    Attributes:
        record: its numbers, or why it failed (`stage`, `reason`).
        files: content by kind of output.
        failed: whether it did.
    """

    record: Record
    files: dict[str, bytes]
    failed: bool = False


class BatchPredictor:
    """A predictor with all that it is asked, as a function of a batch.

    Args:
        predictor: with its model loaded.
        classes: the words.
        writers: which outputs.
        tasks: what to ask of each image.
        templates: prompt templates.
        limits: which images are refused.
        matte: the colour behind transparent pixels.
        regions: region ids by an image's path and size, such as `ovseg.regions.RegionFolder`.
        names: whether the predictor wants to know where images lie.
    """

    def __init__(
        self,
        predictor: Predictor,
        classes: Any,
        writers: Sequence[Writer] = (),
        *,
        tasks: Sequence[Task] = ("segment",),
        templates: Any = "imagenet80",
        limits: Limits | None = None,
        matte: tuple[int, int, int] = (255, 255, 255),
        regions: Callable[[Path, tuple[int, int]], np.ndarray] | None = None,
        names: bool = False,
    ) -> None:
        self.predictor = predictor
        self.classes = classes
        self.writers = tuple(writers)
        self.tasks = tuple(tasks)
        self.templates = templates
        self.limits = limits
        self.matte = matte
        self.regions = regions
        self.names = names

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Columns to columns; a bad image is a row with an error, and never the end of the batch.

        Args:
            batch: a column of images: `pixels` (RGB bytes `(H, W, 3)`), `bytes` (an encoded image) or `path`,
                the first of these that is there. All others are handed through.

        Returns:
            Beside the columns that came (without `bytes` and `pixels`): `record` (JSON, as in a run's
            `results.jsonl`), `error` ("" where all is well), and a column of bytes for each kind of output.

        Raises:
            ShapeError: no column of images.
            VocabularyError, ConfigError, CheckpointError, MissingDependencyError: the set-up is wrong.
        """
        column = next((name for name in INPUTS if name in batch), None)
        if column is None:
            raise ShapeError(f"a batch needs a column of images, {' or '.join(INPUTS)}; got {list(batch)}")
        sources = list(batch[column])
        paths = [str(each) for each in batch["path"]] if "path" in batch else [None] * len(sources)
        rows: list[Row | None] = [None] * len(sources)
        good: list[tuple[int, np.ndarray]] = []
        for index, source in enumerate(sources):
            try:
                pixels = source if column == "pixels" else self.read(source)
                good.append((index, np.asarray(pixels)))
            except Exception as error:
                rows[index] = failure("read", error, str(source) if column == "path" else None)
        chosen = [paths[index] for index, _ in good]
        for (index, _), row in zip(good, self.rows([each for _, each in good], chosen), strict=True):
            rows[index] = row
        done = [row for row in rows if row is not None]
        kept = {name: np.asarray(each) for name, each in batch.items() if name not in ("bytes", "pixels")}
        kinds = {writer.kind: [row.files.get(writer.kind, b"") for row in done] for writer in self.writers}
        return {
            **kept,
            "record": np.array([json.dumps(row.record, ensure_ascii=False) for row in done], dtype=object),
            "error": np.array([row.record["reason"] if row.failed else "" for row in done], dtype=object),
            **{kind: np.array([*contents, None], dtype=object)[:-1] for kind, contents in kinds.items()},
        }

    def read(self, source: Any) -> np.ndarray:
        """An image's pixels."""
        return read_image(source, limits=self.limits, matte=self.matte)

    def rows(self, images: Sequence[np.ndarray], paths: Sequence[str | None]) -> Iterator[Row]:
        """What became of each image, in order. A batch that fails is tried again image by image.

        Raises:
            VocabularyError, ConfigError, CheckpointError, MissingDependencyError: the set-up is wrong.
            OSError: the disk refuses what a writer writes.
        """
        if not images:
            return
        begin = time.perf_counter()
        try:
            answers = self.ask(images, paths)
        except SETUP_ERRORS:
            raise
        except Exception as error:
            if len(images) == 1:
                yield failure("model", error)
                return
            free_memory()
            for each in zip(images, paths, strict=True):
                yield from self.rows([each[0]], [each[1]])
            return
        seconds = (time.perf_counter() - begin) / len(images)
        for image, answer in zip(images, answers, strict=True):
            try:
                yield self._row(image, answer, seconds)
            except Exception as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise
                yield failure("write", error)

    def ask(self, images: Sequence[np.ndarray], paths: Sequence[str | None] | None = None) -> list[Answers]:
        """What the predictor answers to each image; its errors are not caught.

        Args:
            images: RGB.
            paths: where each lies, or None.

        Raises:
            RuntimeError: other than one answer for each image.
        """
        paths = [None] * len(images) if paths is None else paths
        given: dict[str, Any] = {"paths": list(paths)} if self.names else {}
        if self.regions is not None:
            pairs = zip(images, paths, strict=True)
            given["regions"] = [self.regions(Path(path or ""), image.shape[:2]) for image, path in pairs]
        answers = list(
            self.predictor.answers(
                iter(images),
                self.classes,
                tasks=self.tasks,
                batch_size=len(images),
                templates=self.templates,
                **given,
            )
        )
        if len(answers) != len(images):
            raise RuntimeError(f"{len(answers)} results for {len(images)} images")
        return answers

    def _row(self, image: np.ndarray, answers: Answers, seconds: float) -> Row:
        files = {}
        for writer in self.writers:
            stream = io.BytesIO()
            writer.write(stream, image, answers)
            files[writer.kind] = stream.getvalue()
        height, width = answers.image_hw
        numbers = {"height": height, "width": width, **record_of(answers), "seconds": round(seconds, 4)}
        return Row(numbers, files)


def failure(stage: str, error: Exception, path: str | None = None) -> Row:
    """The row of an image that failed while it was read, asked or written."""
    reason = str(error)
    if path is not None:
        reason = reason.removeprefix(f"{path}: ")
    record: Record = {"stage": stage, "reason": reason or type(error).__name__}
    if not isinstance(error, ImageError | MissingDependencyError):
        record["error"] = type(error).__name__
        record["traceback"] = "".join(traceback.format_exception(error))
    return Row(record, {}, failed=True)


def free_memory() -> None:
    """Lets go of what a failed batch held."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
