"""What the tests of runs share: an inferencer without weight, and a run over a folder in one call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from ovseg.answers import Answers
from ovseg.batch import BatchPredictor
from ovseg.inputs import ImageFile, find_images
from ovseg.outputs.writers import build_writers
from ovseg.results import Segmentation, void_label
from ovseg.run_folder import RunFolder
from ovseg.runs import RunSummary, run

VERSIONS = {"ovseg": "1", "torch": "2"}


class FakeSegmenter:
    """Splits brightness into as many bands as there are classes.

    An image whose first pixel is `POISON` fails, as one that does not fit in memory would.
    """

    POISON = (255, 0, 255)

    def __init__(self, names: tuple[str, ...] = ("dark", "middle", "bright"), **settings: Any) -> None:
        self.names = names
        self.settings = settings
        self.notice: str | None = "a fake: it knows nothing"
        self.device = SimpleNamespace(type="cpu")
        self.batches: list[int] = []
        self.on_image: Any = None

    def describe(self) -> dict[str, Any]:
        return {"method": "fake", **self.settings, "versions": {"ovseg": "0", "torch": "9"}}

    def bank(self, classes: Any, templates: Any) -> None: ...

    def answers(
        self,
        images: Iterable[Any],
        classes: Any,
        *,
        tasks: Any = ("segment",),
        batch_size: int | None = None,
        templates: Any = None,
    ) -> Iterator[Answers]:
        batch = list(images)
        self.batches.append(len(batch))
        for image in batch:
            if self.on_image:
                self.on_image(image)
            if tuple(int(value) for value in image[0, 0]) == self.POISON:
                raise RuntimeError("out of memory: tried to allocate 1 TiB")
            names = tuple(getattr(classes, "names", self.names))
            grey = image.mean(-1)
            labels = (grey * len(names) / 256).astype(np.uint16)
            void = void_label(len(names))
            labels[grey == 0] = void
            confidence = np.full(labels.shape, 0.5, np.float32)
            scores = np.full((len(names), 4, 6), 1 / len(names), np.float32)
            segmentation = Segmentation(labels, names, confidence, void=void, scores=scores)
            yield Answers(segmentation.image_hw, names, segmentation)


def save(path: Path, seed: int = 0, hw: tuple[int, int] = (20, 32), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(1, 255, (*hw, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def go(
    photos: Path,
    out: Path,
    segmenter: Any = None,
    *,
    settings: dict | None = None,
    overwrite: bool = False,
    formats: tuple[str, ...] = ("labels",),
    images: list[ImageFile] | None = None,
    **options: Any,
) -> RunSummary:
    with RunFolder(
        out, {"method": "fake"} if settings is None else settings, VERSIONS, overwrite=overwrite
    ) as folder:
        return run(
            BatchPredictor(segmenter or FakeSegmenter(), None, build_writers(formats)),
            images if images is not None else find_images([photos]),
            folder,
            **options,
        )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {
        each.relative_to(out).as_posix(): each.read_bytes()
        for each in sorted(out.rglob("*"))
        if each.is_file() and each.name not in ("run.json", ".ovseg.lock") and each.suffix != ".jsonl"
    }


def poison(path: Path) -> None:
    pixels = np.full((20, 32, 3), 90, np.uint8)
    pixels[0, 0] = FakeSegmenter.POISON
    Image.fromarray(pixels).save(path)
