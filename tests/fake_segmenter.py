"""An inferencer's shape without its weight: labels by brightness."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from ovseg.results import Segmentation, void_label


class FakeSegmenter:
    """Splits brightness into as many bands as there are classes.

    An image whose first pixel is `POISON` fails, as one that does not fit in memory would.
    """

    POISON = (255, 0, 255)

    def __init__(self, names: tuple[str, ...] = ("dark", "middle", "bright"), **settings: Any) -> None:
        self.names = names
        self.settings = settings
        self.notice: str | None = "a fake: it knows nothing"
        self.scorer = SimpleNamespace(device=SimpleNamespace(type="cpu"))
        self.batches: list[int] = []
        self.on_image: Any = None

    def describe(self) -> dict[str, Any]:
        return {"method": "fake", **self.settings, "versions": {"ovseg": "0", "torch": "9"}}

    def bank(self, classes: Any, templates: Any) -> None: ...

    def __call__(
        self, images: Iterable[Any], classes: Any, *, batch_size: int | None = None, templates: Any = None
    ) -> Iterator[Segmentation]:
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
            yield Segmentation(labels, names, confidence, void=void, scores=scores)
