"""A video through a predictor: an overlay video, and a line of numbers for each frame."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ovseg.answers import Answers, Task
from ovseg.batch import Predictor
from ovseg.errors import ConfigError, ImageError
from ovseg.outputs.palette import Scheme, class_colors
from ovseg.outputs.run_files import class_table
from ovseg.outputs.visualize import Entry, beside
from ovseg.outputs.writers import drawing_of
from ovseg.record_file import atomic
from ovseg.records import Record, record_of
from ovseg.results import void_label
from ovseg.run_folder import CLASSES
from ovseg.text.vocabulary import Vocabulary
from ovseg.video import Frame, VideoInfo, VideoWriter, read_frames, read_info

VIDEO, FRAMES = "overlay.mp4", "frames.jsonl"


@dataclass(frozen=True)
class VideoSummary:
    """What became of a video.

    Attributes:
        info: of the source.
        frames: how many were asked.
        seconds: that it took.
        encoder: of the overlay video.
    """

    info: VideoInfo
    frames: int
    seconds: float
    encoder: str


def run_video(
    predictor: Predictor,
    vocabulary: Vocabulary,
    source: Path,
    out: Path,
    *,
    task: Task = "segment",
    templates: Any = "imagenet80",
    stride: int = 1,
    limit: int | None = None,
    batch_size: int = 1,
    opacity: float = 0.55,
    legend: bool = True,
    scheme: Scheme = "vivid",
    on_frame: Callable[[int, int], None] | None = None,
) -> VideoSummary:
    """Ask the frames of a video; write `overlay.mp4`, `frames.jsonl` and `classes.json`.

    The overlay video appears under its name when it is complete; lines are there as soon as their frame is
    done. Its rate is the source's by the stride, so it takes as long.

    Args:
        predictor: answers images in order; with a `TemporalAverage` among its refinement, smoothly.
        vocabulary: the words.
        source: a file that PyAV reads.
        out: folder of the results.
        task: what is asked of each frame.
        templates: of the prompts.
        stride: see `read_frames`.
        limit: only the first so many of the frames that the stride leaves.
        batch_size: frames at a time; results do not depend on it.
        opacity, scheme: of the overlay.
        legend: list all classes beside the picture, with how much of them the frame holds.
        on_frame: called after each frame with how many are done, and of how many (0: not known).

    Raises:
        ImageError: not a video.
        ConfigError: a stride or limit below 1, or a folder that cannot be written.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}: expected at least 1 frame")
    begin = time.perf_counter()
    frames = islice(read_frames(source, stride), limit)
    info = read_info(source)
    total = -(-info.frames // stride)
    total = min(total, limit) if limit else total
    colors = class_colors(vocabulary.names, vocabulary.background, vocabulary.colors, scheme)
    draw = drawing_of(opacity, False, scheme, vocabulary.colors)[task]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write into '{out}': {error.strerror or error}") from error
    table = class_table(
        vocabulary.names,
        void_label(len(vocabulary.names)),
        vocabulary.background,
        vocabulary.colors,
        scheme,
    )
    with atomic(out / CLASSES) as stream:
        stream.write(table)
    part, done = out / f".{VIDEO}.part", 0
    try:
        with (
            VideoWriter(part, info.rate / stride) as writer,
            open(out / FRAMES, "w", encoding="utf-8") as lines,
        ):
            for frame, answers, seconds in _answered(
                predictor, vocabulary, frames, task, templates, batch_size
            ):
                if frame.image.shape[:2] != info.image_hw:
                    raise ImageError(f"{source}: the size of the pictures changes at frame {frame.index}")
                record = record_of(answers)
                picture = draw(frame.image, answers.of(task))
                if legend and task != "anomaly":
                    picture = beside(picture, _entries(vocabulary.names, colors, record))
                writer.write(_pixels(picture))
                where = {"frame": frame.index, "time": round(frame.seconds, 4), "seconds": round(seconds, 4)}
                lines.write(json.dumps({**where, **record}, ensure_ascii=False) + "\n")
                lines.flush()
                done += 1
                if on_frame:
                    on_frame(done, total)
        part.replace(out / VIDEO)
    finally:
        part.unlink(missing_ok=True)
    return VideoSummary(info, done, time.perf_counter() - begin, writer.encoder or "")


def _answered(
    predictor: Predictor,
    vocabulary: Vocabulary,
    frames: Iterator[Frame],
    task: Task,
    templates: Any,
    batch_size: int,
) -> Iterator[tuple[Frame, Answers, float]]:
    """Frames with their answers, and how long each took."""
    while batch := list(islice(frames, batch_size)):
        begin = time.perf_counter()
        answers = list(
            predictor.answers(
                iter([frame.image for frame in batch]),
                vocabulary,
                tasks=(task,),
                batch_size=len(batch),
                templates=templates,
            )
        )
        seconds = (time.perf_counter() - begin) / len(batch)
        yield from ((frame, each, seconds) for frame, each in zip(batch, answers, strict=True))


def _entries(names: Sequence[str], colors: Sequence[Any], record: Record) -> list[Entry]:
    """All classes in the vocabulary's order, so that nothing in the panel moves from frame to frame."""
    shares = {each["name"]: each["share"] for each in record.get("classes", ())}
    numbers: dict[str, float] = {each["name"]: each["number"] for each in record.get("counts", ())}
    for each in (*record.get("instances", ()), *record.get("detections", ())):
        numbers[each["name"]] = numbers.get(each["name"], 0) + 1
    most = max(numbers.values(), default=0)
    found = []
    for index, (name, color) in enumerate(zip(names, colors, strict=True)):
        if "classes" in record:
            found.append(Entry(name, color, shares.get(name, 0.0), index))
        else:
            number = numbers.get(name, 0)
            found.append(Entry(name, color, number / most if most else 0.0, index, f"{number:.4g}"))
    return found


def _pixels(picture: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    return np.asarray(picture.convert("RGB"))
