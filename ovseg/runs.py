"""A run: images from disk through an inferencer into a folder, surviving broken images and interruptions."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ovseg.batch import DISK_ERRORS, BatchPredictor, Row, Writer, failure
from ovseg.errors import OvsegError
from ovseg.inputs import ImageFile
from ovseg.record_file import atomic
from ovseg.records import Record
from ovseg.run_folder import RunFolder, describe_source


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
    predict: BatchPredictor,
    images: Sequence[ImageFile],
    folder: RunFolder,
    *,
    batch_size: int = 1,
    readers: int = 2,
    max_pixels_ahead: int = 48_000_000,
    on_outcome: Callable[[Outcome], None] | None = None,
    keep_records: int = 20,
    all_images: Sequence[ImageFile] | None = None,
) -> RunSummary:
    """Ask the images that are not done yet, and write what the writers write.

    An image that cannot be read, answered or written is recorded with its reason, and the others go on. A
    batch that fails is tried again image by image. Each image's files appear whole, and its line in
    `results.jsonl` after them, so a run can be stopped at any time and resumed.

    Args:
        predict: with the words, tasks and writers.
        images: what to ask.
        folder: where to, opened.
        batch_size: images at a time; results do not depend on it.
        readers: threads that read files ahead of the model.
        max_pixels_ahead: bound on the pixels that wait in memory.
        on_outcome: called after each image, in this thread.
        keep_records: how many records the summary holds.
        all_images: of the whole run, where `images` are one shard of it.

    Raises:
        VocabularyError, ConfigError, CheckpointError, MissingDependencyError: the set-up is wrong.
        OvsegError: the disk refuses to take results.
    """
    begin = time.perf_counter()
    summary = RunSummary()
    writers = predict.writers
    todo, stems = folder.plan(images, [writer.kind for writer in writers], all_images)
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
            note(Outcome(image, folder.timed(image.name), skipped=True))

    pending = read_ahead(
        todo,
        lambda image: predict.read(image.path),
        threads=readers,
        ahead=4 * batch_size,
        max_pixels=max_pixels_ahead,
    )
    for chunk in _chunks(pending, 4 * batch_size if batch_size > 1 else 1, max_pixels_ahead):
        for image, result in chunk:
            if isinstance(result, Exception):
                note(_failed(folder, image, failure("read", result, str(image.path))))
        good = [(image, result) for image, result in chunk if isinstance(result, np.ndarray)]
        good.sort(key=lambda each: each[1].shape)  # equal sizes make full batches
        for batch in (good[start : start + batch_size] for start in range(0, len(good), batch_size)):
            rows = predict.rows([pixels for _, pixels in batch], [str(image.path) for image, _ in batch])
            try:
                for (image, _), row in zip(batch, rows, strict=True):
                    done = not row.failed
                    note(_write(folder, image, stems, row, writers) if done else _failed(folder, image, row))
            except OSError as error:
                raise OvsegError(
                    f"cannot write into '{folder.path}': {error.strerror}. What is done is kept: make room "
                    f"or allow writing, and give the same command again"
                ) from error
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


def _write(
    folder: RunFolder, image: ImageFile, stems: Mapping[str, str], row: Row, writers: Sequence[Writer]
) -> Outcome:
    stem = stems[image.name]
    outputs = {writer.kind: f"{writer.folder}/{stem}{writer.suffix}" for writer in writers}
    try:
        for kind, path in outputs.items():
            with atomic(folder.path / path) as stream:
                stream.write(row.files[kind])
        where = {"image": image.name, "source": describe_source(image.path), "stem": stem}
        size = {key: row.record[key] for key in ("height", "width")}
        record = {**where, **size, "outputs": outputs, **row.record}
        folder.commit(record)
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        return _failed(folder, image, failure("write", error))
    return Outcome(image, record)


def _failed(folder: RunFolder, image: ImageFile, row: Row) -> Outcome:
    record: Record = {"image": image.name, "source": describe_source(image.path), **row.record}
    folder.fail(record)
    return Outcome(image, record, failed=True)
