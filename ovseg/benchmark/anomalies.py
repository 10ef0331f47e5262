"""Damage on products that a camera sees one by one: words, good images, and plain colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from ovseg.anomaly_build import build_anomaly_inferencer
from ovseg.benchmark.objects import predictor
from ovseg.benchmark.records import Rows
from ovseg.heads.anomaly import top_mean
from ovseg.metrics.anomaly import AnomalyMetrics
from ovseg.scenes.inspection import KINDS, InspectionSet

#: The bundled models know things of this size: images are taken as they are.
SIDE = 224

ODD_COLOUR, GOOD_COLOUR = "odd colours", "colours unlike the good images'"
WORDS = "generic words on proxyclip's map"
#: Detectors by row: the method, and whether it sees the good images.
METHODS = {
    "WinCLIP, words": ("winclip", False),
    "AnoVL, words": ("anovl", False),
    "WinCLIP, words and good images": ("winclip", True),
    "patch memory, good images": ("patch-memory", True),
}
FEW_SHOT = (GOOD_COLOUR, *(row for row, (_, good) in METHODS.items() if good))

#: An image to its score and its map.
Answer = Callable[[np.ndarray], tuple[float, np.ndarray]]


def measure_anomalies(
    seed: int, *, num_scenes: int = 8, good: int = 8, kinds: Sequence[str] = KINDS, part: Any = "test"
) -> Rows:
    """Image scores and pixel figures of every kind.

    Args:
        seed: of the scenes.
        num_scenes: of each kind; about half are damaged.
        good: good images of each kind.
        kinds: of products.
        part: "test", or "val" to tune on.
    """
    rows: Rows = {}
    for kind in kinds:
        shots = [InspectionSet(kind, "good", seed, length=good)[k].image for k in range(good)]
        scenes = InspectionSet(kind, part, seed, length=num_scenes)
        shown = [scenes[k] for k in range(num_scenes)]
        answers: dict[str, Answer] = {
            ODD_COLOUR: colour_answer(()),
            GOOD_COLOUR: colour_answer(shots),
            WORDS: lambda image, kind=kind: words_answer(image, kind),  # type: ignore[misc]
        }
        for row in METHODS:
            answers[row] = detector_answer(row, kind, shots)
        for row, answer in answers.items():
            metrics = AnomalyMetrics()
            records = []
            for scene in shown:
                damaged = any(each is not None for each in scene.instance_defects)
                score, pixels = answer(scene.image)
                metrics.update(score, damaged, pixels, scene.defects)
                records.append({"kind": kind, "score": score, "damaged": damaged})
            report = metrics.report()
            figures = {name: getattr(report, name) for name in ("pixel_auroc", "aupro", "aupro_200")}
            rows.setdefault(row, []).extend([records[0] | figures, *records[1:]])
    return rows


def words_answer(image: UInt8[np.ndarray, "H W 3"], kind: str) -> tuple[float, np.ndarray]:
    """What `--task anomaly` says without an anomaly method: normal and abnormal words on a score map."""
    inferencer = predictor()
    found = inferencer.ask(inferencer.encode([image]), (kind,), ("anomaly",))[0].of("anomaly")
    return found.score, found.map


@cache
def word_detector(method: str) -> Any:
    """A method that reads words, with the bundled CLIP; it has not seen good images."""
    return build_anomaly_inferencer(method, encoder="bundled", size=SIDE)


def detector_answer(row: str, kind: str, shots: Sequence[np.ndarray]) -> Answer:
    """A row of `METHODS`, which has looked at the good images where it may."""
    method, sees = METHODS[row]
    if sees:
        size = {"short_side": SIDE} if method == "patch-memory" else {"size": SIDE}
        detector = build_anomaly_inferencer(method, encoder="bundled", **size)  # type: ignore[arg-type]
        detector.learn(list(shots), kind, threshold=False)
    else:
        detector = word_detector(method)

    def answer(image: np.ndarray) -> tuple[float, np.ndarray]:
        (found,) = detector([image], kind)
        return found.score, found.map

    return answer


def colour_answer(shots: Sequence[UInt8[np.ndarray, "H W 3"]]) -> Answer:
    """The trivial answer: how far a pixel's colour is from those of the good images, or of its own image.

    Mahalanobis distance to their mean, and the mean of the top 1 % for the image.
    """

    def fitted(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        pixels = np.concatenate([each.reshape(-1, 3) for each in images]).astype(np.float64)
        return pixels.mean(axis=0), np.linalg.inv(np.cov(pixels.T) + np.eye(3))

    model = fitted(shots) if shots else None

    def answer(image: np.ndarray) -> tuple[float, Float[np.ndarray, "H W"]]:
        mean, inverse = model or fitted([image])
        away = image.astype(np.float64) - mean
        pixels = np.sqrt(np.einsum("yxc,cd,yxd->yx", away, inverse, away)).astype(np.float32)
        return top_mean(pixels), pixels

    return answer
