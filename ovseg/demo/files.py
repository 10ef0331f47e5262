"""The files of one answer, for download."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from ovseg.answers import Answers, Task
from ovseg.demo.drawing import summary_of
from ovseg.demo.engine import Picture
from ovseg.demo.settings import Settings
from ovseg.outputs import coco_files
from ovseg.outputs.writers import build_writers

#: Answers whose files are kept.
FOLDERS_KEPT = 64
COCO_TASKS = ("segment", "detect")


def write_files(
    folder: Path, picture: Picture, answers: Answers, task: Task, settings: Settings
) -> list[Path]:
    """Labels, overlay, COCO, scores and numbers: those that a task has.

    Args:
        folder: gets a folder for each answer; the oldest are removed.
        picture: what was asked.
        answers: at the size of `picture.pixels`, with scores for segment.
        task: which of them.
        settings: of the overlay.
    """
    question = json.dumps([picture.key, task, settings.query(Settings()), settings.colorblind])
    place = folder / hashlib.sha256(question.encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    _prune(folder, place)
    stem = "".join(each if each.isalnum() or each in "-_." else "_" for each in picture.name)[:60] or "image"
    judged = answers.anomaly is not None and answers.anomaly.mask is not None
    writers = build_writers(
        ["labels", "overlay", "scores"],
        [task],
        opacity=settings.opacity,
        scheme=settings.scheme,
        judged=judged,
    )
    written = []
    for writer in writers:
        path = place / f"{stem}_{writer.kind.removesuffix('_' + task)}{writer.suffix}"
        with path.open("wb") as stream:
            writer.write(stream, picture.pixels, answers)
        written.append(path)
    if task in COCO_TASKS:
        path = place / f"{stem}_coco.json"
        with path.open("w", encoding="utf-8") as text:
            part = coco_files.annotations_of(answers)
            coco_files.join(text, task, [(picture.name, part)], coco_files.categories(answers.names))
        written.append(path)
    path = place / f"{stem}_{task}.json"
    content = {"image": picture.name, "height": picture.hw[0], "width": picture.hw[1], "task": task}
    content |= {"words": settings.words, "background": settings.background, "threshold": settings.threshold}
    content |= {"method": settings.method, "encoder": settings.encoder, **summary_of(answers, task)}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return [*written, path]


def _prune(folder: Path, latest: Path) -> None:
    """Only so many folders stay; `latest` does."""
    others = sorted(
        (each for each in folder.iterdir() if each != latest and each.is_dir()),
        key=lambda each: each.stat().st_mtime,
    )
    for old in others[: max(len(others) + 1 - FOLDERS_KEPT, 0)]:
        shutil.rmtree(old, ignore_errors=True)
