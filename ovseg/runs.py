"""A run: images from disk through an inferencer into a folder, surviving broken images and interruptions."""

from __future__ import annotations

import errno
import gc
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ovseg.answers import Answers, Task
from ovseg.errors import (
    CheckpointError,
    ConfigError,
    ImageError,
    MissingDependencyError,
    OvsegError,
    VocabularyError,
)
from ovseg.images import BinaryStream, Limits, read_image
from ovseg.inputs import ImageFile
from ovseg.records import record_of
from ovseg.run_folder import Record, RunFolder, atomic, describe_source

#: Errors of the model that no other image would be spared.
SETUP_ERRORS = (VocabularyError, ConfigError, CheckpointError, MissingDependencyError)

#: Errors of the disk that no other image would be spared.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


@runtime_checkable
class Predictor(Protocol):
    """What a run needs of an inferencer."""

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


@dataclass(frozen=True)
class Outcome:
    """What became of one image: `record` is its line in the results, or in the errors where it failed."""

    image: ImageFile
    record: Record
    failed: bool = False
    skipped: bool = False


@dataclass
class RunSummary:
    """What became of all images.

    Attributes:
        done, skipped: how many were computed now, and how many earlier.
        failed: name and reason of the others.
        records: of the first images that are done, for a table.
        seconds: from begin to end.
        hint: what the failures have in common, if they do.
    """

    done: int = 0
    skipped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    seconds: float = 0.0
    hint: str = ""


def run(
    predictor: Predictor,
    images: Sequence[ImageFile],
    classes: Any,
    folder: RunFolder,
    writers: Sequence[Writer],
    *,
    tasks: Sequence[Task] = ("segment",),
    templates: Any = "imagenet80",
    batch_size: int = 1,
    limits: Limits | None = None,
    matte: tuple[int, int, int] = (255, 255, 255),
    readers: int = 2,
    max_pixels_ahead: int = 48_000_000,
    on_outcome: Callable[[Outcome], None] | None = None,
    keep_records: int = 20,
    regions: Callable[[Path, tuple[int, int]], np.ndarray] | None = None,
    names: bool = False,
) -> RunSummary:
    """Ask the images that are not done yet, and write what the writers write.

    An image that cannot be read, answered or written is recorded with its reason, and the others go on. A
    batch that fails is tried again image by image. Each image's files appear whole, and its line in
    `results.jsonl` after them, so a run can be stopped at any time and resumed.

    Args:
        predictor: an `Inferencer`, or the like.
        images: what to ask.
        classes: the vocabulary.
        folder: where to, opened.
        writers: which outputs.
        tasks: what to ask of each image.
        templates: prompt templates.
        batch_size: images at a time; results do not depend on it.
        limits: which images are refused.
        matte: the colour behind transparent pixels.
        readers: threads that read files ahead of the model.
        max_pixels_ahead: bound on the pixels that wait in memory.
        on_outcome: called after each image, in this thread.
        keep_records: how many records the summary holds.
        regions: region ids by an image's path and size, such as `ovseg.regions.RegionFolder`.
        names: whether the predictor wants to know where images lie (`paths=`).

    Raises:
        VocabularyError, ConfigError, CheckpointError, MissingDependencyError: the set-up is wrong.
        OvsegError: the disk refuses to take results.
    """
    begin = time.perf_counter()
    summary = RunSummary()
    todo, stems = folder.plan(images, [writer.kind for writer in writers])
    waiting = {image.name for image in todo}

    def note(outcome: Outcome) -> None:
        if outcome.failed:
            summary.failed.append((outcome.image.name, outcome.record["reason"]))
        else:
            summary.skipped += outcome.skipped
            summary.done += not outcome.skipped
            if len(summary.records) < keep_records:
                summary.records.append(outcome.record)
        if on_outcome:
            on_outcome(outcome)

    for image in images:
        if image.name not in waiting:
            note(Outcome(image, folder.records[image.name], skipped=True))

    def read(image: ImageFile) -> np.ndarray:
        return read_image(image.path, limits=limits, matte=matte)

    def ask(batch: list[tuple[ImageFile, np.ndarray]]) -> list[Answers]:
        given: dict[str, Any] = {"paths": [str(image.path) for image, _ in batch]} if names else {}
        if regions is not None:
            given["regions"] = [regions(image.path, pixels.shape[:2]) for image, pixels in batch]
        return list(
            predictor.answers(
                (pixels for _, pixels in batch),
                classes,
                tasks=tasks,
                batch_size=len(batch),
                templates=templates,
                **given,
            )
        )

    pending = read_ahead(todo, read, threads=readers, ahead=4 * batch_size, max_pixels=max_pixels_ahead)
    for chunk in _chunks(pending, 4 * batch_size if batch_size > 1 else 1, max_pixels_ahead):
        for image, result in chunk:
            if isinstance(result, Exception):
                note(_failed(folder, image, "read", result))
        good = [(image, result) for image, result in chunk if isinstance(result, np.ndarray)]
        good.sort(key=lambda each: each[1].shape)  # equal sizes make full batches
        for batch in (good[start : start + batch_size] for start in range(0, len(good), batch_size)):
            for image, pixels, answer, seconds in _asked(ask, batch):
                if isinstance(answer, Exception):
                    note(_failed(folder, image, "model", answer))
                else:
                    note(_write(folder, image, stems[image.name], pixels, answer, writers, seconds))
    folder.finish(images)
    summary.seconds = time.perf_counter() - begin
    broken = [each for each in folder.errors.values() if each["stage"] == "model"]
    if not summary.done and len(broken) > 1 and len({each["reason"] for each in broken}) == 1:
        summary.hint = (
            f"no image passed the model, all {len(broken)} for the same reason: this looks like a fault of "
            f"the set-up and not of the images"
        )
    return summary


def read_ahead(
    images: Iterable[ImageFile],
    read: Callable[[ImageFile], np.ndarray],
    *,
    threads: int = 2,
    ahead: int = 8,
    max_pixels: int = 48_000_000,
) -> Iterator[tuple[ImageFile, np.ndarray | Exception]]:
    """Images with their pixels (or why there are none), in order, read by threads in advance.

    At most `ahead` images and about `max_pixels` wait in memory.
    """
    source = iter(images)
    queue: deque[tuple[ImageFile, Future[np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ovseg-read")

    def held() -> int:
        ready = (each for _, each in queue if each.done() and each.exception() is None)
        return sum(each.result().shape[0] * each.result().shape[1] for each in ready)

    try:
        while True:
            while len(queue) < max(ahead, threads) and (not queue or held() < max_pixels):
                image = next(source, None)
                if image is None:
                    break
                queue.append((image, pool.submit(read, image)))
            if not queue:
                return
            image, future = queue.popleft()
            try:
                yield image, future.result()
            except Exception as error:
                yield image, error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _chunks(
    pending: Iterator[tuple[ImageFile, Any]], count: int, max_pixels: int
) -> Iterator[list[tuple[ImageFile, Any]]]:
    chunk: list[tuple[ImageFile, Any]] = []
    pixels = 0
    for image, result in pending:
        chunk.append((image, result))
        pixels += result.shape[0] * result.shape[1] if isinstance(result, np.ndarray) else 0
        if len(chunk) >= count or pixels >= max_pixels:
            yield chunk
            chunk, pixels = [], 0
    if chunk:
        yield chunk


def _asked(
    ask: Callable[[list[tuple[ImageFile, np.ndarray]]], list[Answers]],
    batch: list[tuple[ImageFile, np.ndarray]],
) -> Iterator[tuple[ImageFile, np.ndarray, Answers | Exception, float]]:
    """Answers for a batch; where it fails, for its images one by one."""
    begin = time.perf_counter()
    answers: Sequence[Answers | Exception]
    try:
        answers = ask(batch)
        if len(answers) != len(batch):
            raise RuntimeError(f"{len(answers)} results for {len(batch)} images")
    except SETUP_ERRORS:
        raise
    except Exception as error:
        if len(batch) > 1:
            _free_memory()
            for each in batch:
                yield from _asked(ask, [each])
            return
        answers = [error]
    seconds = (time.perf_counter() - begin) / len(batch)
    for (image, pixels), answer in zip(batch, answers, strict=True):
        yield image, pixels, answer, seconds


def _write(
    folder: RunFolder,
    image: ImageFile,
    stem: str,
    pixels: np.ndarray,
    answers: Answers,
    writers: Sequence[Writer],
    seconds: float,
) -> Outcome:
    outputs = {}
    try:
        for writer in writers:
            outputs[writer.kind] = f"{writer.folder}/{stem}{writer.suffix}"
            with atomic(folder.path / outputs[writer.kind]) as stream:
                writer.write(stream, pixels, answers)
        record = {
            "image": image.name,
            "source": describe_source(image.path),
            "stem": stem,
            "height": answers.image_hw[0],
            "width": answers.image_hw[1],
            "outputs": outputs,
            **record_of(answers),
            "seconds": round(seconds, 4),
        }
        folder.commit(record)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise OvsegError(
                f"cannot write into '{folder.path}': {error.strerror}. What is done is kept: make room or "
                f"allow writing, and give the same command again"
            ) from error
        return _failed(folder, image, "write", error)
    except Exception as error:
        return _failed(folder, image, "write", error)
    return Outcome(image, record)


def _failed(folder: RunFolder, image: ImageFile, stage: str, error: Exception) -> Outcome:
    reason = str(error).removeprefix(f"{image.path}: ") or type(error).__name__
    record: Record = {
        "image": image.name,
        "source": describe_source(image.path),
        "stage": stage,
        "reason": reason,
    }
    if not isinstance(error, ImageError | MissingDependencyError):
        record["error"] = type(error).__name__
        record["traceback"] = "".join(traceback.format_exception(error))
    folder.fail(record)
    return Outcome(image, record, failed=True)


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
