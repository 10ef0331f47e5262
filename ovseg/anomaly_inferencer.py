"""Anomalies for users: images, the name of a thing, perhaps good images in; maps, scores, a threshold out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ovseg
from ovseg.anomaly_detectors import Detector, MemoryDetector
from ovseg.anomaly_results import AnomalyMap, AnomalyThreshold
from ovseg.anomaly_structures import StateBank
from ovseg.answers import Answers, check_tasks
from ovseg.errors import ConfigError
from ovseg.heads.anomaly import AnomalyHead
from ovseg.images import in_batches, read_image
from ovseg.inputs import find_images
from ovseg.structures import TextBank
from ovseg.text.vocabulary import Vocabulary

#: Good images that a threshold is taken from, at most: each is scored once more.
CALIBRATION_IMAGES = 64

#: A folder, a file, a list of either, or images.
Good = str | os.PathLike[str] | Sequence[Any]


def good_images(good: Good, shots: int | None = None) -> list[Any]:
    """The good images, unread where they are files.

    Args:
        good: a folder (with all below it), a file, or a list of files, images, or functions that give images.
        shots: only so many, evenly spaced.

    Raises:
        ConfigError: there are none.
    """
    if isinstance(good, str | os.PathLike):
        found: list[Any] = [each.path for each in find_images([good])]
    else:
        found = list(good)
    if not found:
        raise ConfigError("no good images were given: name a folder of images without a fault")
    if shots is not None and shots < 1:
        raise ConfigError(f"shots must be at least 1, got {shots}")
    if shots is None or shots >= len(found):
        return found
    return [found[round(place)] for place in np.linspace(0, len(found) - 1, shots)]


class AnomalyInferencer:
    """A detector with its words and its head: what tools and models ask.

    Args:
        detector: see `ovseg.anomaly_detectors`.
        words: the name of a thing to a bank of its two states; None where no words are read.
        head: what makes results of scores; its threshold judges them.
        about: what `describe` says of how it was made.
        notice: licence of the weights, if they demand one.
        device: where the towers are.
    """

    def __init__(
        self,
        detector: Detector,
        *,
        words: Callable[[str], StateBank] | None = None,
        head: AnomalyHead | None = None,
        about: Mapping[str, Any] | None = None,
        notice: str | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.detector = detector
        self.words = words
        self.head = head or AnomalyHead()
        self.about = dict(about or {})
        self.notice = notice
        self.device = device or torch.device("cpu")
        self.learned: dict[str, Any] = {}
        self._states: dict[str, StateBank] = {}

    def learn(
        self,
        good: Good,
        classes: Any = "object",
        *,
        shots: int | None = None,
        threshold: bool = True,
        quantile: float = 0.95,
        pixel_quantile: float = 0.995,
    ) -> None:
        """Looks at good images: to compare with, and for a threshold.

        Methods that know words only (AnoVL, AnomalyCLIP) take a threshold from them and nothing else. Where
        they are compared with, each is scored by the others, so that one alone gives no threshold.

        Args:
            good: see `good_images`; or a `.safetensors` file that `save` wrote, which gives no threshold.
            classes: what the images show; only words need it.
            shots: see `good_images`.
            threshold: whether to take one.
            quantile: share of the good images that shall stay normal.
            pixel_quantile: share of their pixels that shall stay normal.

        Raises:
            ConfigError: no good images, or a quantile that is no share.
            ImageError: one cannot be read.
        """
        if isinstance(good, str | os.PathLike) and Path(good).suffix == ".safetensors":
            self._load(Path(good))
            return
        files = good_images(good, shots)
        sizes: list[tuple[int, int]] = []
        digests: list[str] = []

        def pixels(chosen: Iterable[Any]) -> Iterator[np.ndarray]:
            for each in chosen:
                image = each() if callable(each) else read_image(each)
                sizes.append((image.shape[0], image.shape[1]))
                digests.append(hashlib.sha256(image.tobytes()).hexdigest())
                yield image

        if self.detector.learns:
            self.detector.learn(pixels(files))
        elif not threshold:
            raise ConfigError(
                "this method knows words only: it could take nothing but a threshold from good images"
            )
        calibrates = threshold and not (self.detector.learns and len(files) < 2)
        if calibrates:
            self._calibrate(pixels(files[:CALIBRATION_IMAGES]), sizes, classes, quantile, pixel_quantile)
        digest = hashlib.sha256("".join(digests[: len(files)]).encode()).hexdigest()
        self.learned = {"good_images": len(files), "sha256": digest}

    def _calibrate(
        self,
        pixels: Iterator[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        classes: Any,
        quantile: float,
        pixel_quantile: float,
    ) -> None:
        """Takes the threshold from held-out good images; `sizes` ends with that of the image under way."""
        head = AnomalyHead(sigma_px=self.head.sigma_px, image_score=self.head.image_score)
        held_out = self.detector.held_out(pixels, self.states(classes))
        found = (result for scores in held_out for result in head(scores, sizes[-1]))
        self.head.threshold = AnomalyThreshold.from_good(
            found, image_quantile=quantile, pixel_quantile=pixel_quantile
        )

    def save(self, path: str | Path) -> None:
        """Writes the memory of good images, for `good=FILE.safetensors` later.

        Raises:
            ConfigError: the method keeps no patches, or has learned none.
        """
        memory = getattr(self.detector, "memory", None)
        if memory is None:
            raise ConfigError("nothing to save: only patch-memory keeps patches, once it has good images")
        memory.save(Path(path))

    def describe(self) -> dict[str, Any]:
        """All that changes results, JSON-ready: method, options, weights, good images, threshold."""
        threshold = self.head.threshold
        return {
            **self.about,
            "sigma_px": self.head.sigma_px,
            "good": self.learned or None,
            "threshold": None if threshold is None else asdict(threshold),
            "versions": {"ovseg": ovseg.__version__, "torch": torch.__version__},
        }

    def bank(self, classes: Any = "object", templates: Any = None) -> tuple[Vocabulary, TextBank]:
        """The words for a thing: its vocabulary of one name, and its two states.

        Args:
            classes: the name of the thing.
            templates: not used: state prompts bring their own.

        Raises:
            VocabularyError, ConfigError: see `states`.
        """
        vocabulary = Vocabulary.parse(classes)
        states = self.states(classes)
        if states is None:  # no words are read: two opposite ones stand for them
            rows = torch.tensor([[1.0], [-1.0]])
            return vocabulary, TextBank(rows, torch.arange(2), ("normal", "abnormal"))
        return vocabulary, states.text_bank

    def states(self, classes: Any = "object") -> StateBank | None:
        """The two states of a thing, encoded once; None where no words are read.

        Raises:
            VocabularyError: the name is unusable.
            ConfigError: several names; one image is inspected for one thing.
        """
        names = Vocabulary.parse(classes).names
        if len(names) != 1:
            raise ConfigError(
                f'name the one thing that the images show, such as "bottle" or "object"; got '
                f"{len(names)}: {', '.join(names[:4])}"
            )
        if self.words is None:
            return None
        (name,) = names
        if name not in self._states:
            self._states[name] = self.words(name).to(self.device)
        return self._states[name]

    def answers(
        self,
        images: Iterable[Any],
        classes: Any = "object",
        *,
        tasks: str | Iterable[str] = ("anomaly",),
        batch_size: int | None = None,
        templates: Any = None,
        regions: Any = None,
    ) -> Iterator[Answers]:
        """Results, lazily and in order; images may differ in size.

        Args:
            images: anything that `ovseg.images.read_image` takes.
            classes: the name of the thing that they show.
            tasks: "anomaly" and nothing else.
            batch_size: images taken at a time, by default 1 on a CPU and 8 elsewhere; results do not depend
                on it.
            templates: not used: state prompts bring their own.
            regions: not used.

        Raises:
            ConfigError: another task, several names, or good images are needed and were not given. Raised at
                the call.
            ImageError: an image cannot be read; raised when its turn comes.
        """
        if check_tasks(tasks) != ("anomaly",):
            raise ConfigError(f"an anomaly method answers the task 'anomaly' only, got {tasks}")
        size = (1 if self.device.type == "cpu" else 8) if batch_size is None else batch_size
        if size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {size}")
        if self.detector.needs_good and not self.learned:
            raise ConfigError("this method compares with good images: give a folder of them (good=FOLDER)")
        names = Vocabulary.parse(classes).names
        return self._answers(images, self.states(classes), names, size)

    def __call__(
        self, images: Iterable[Any], classes: Any = "object", **options: Any
    ) -> Iterator[AnomalyMap]:
        """The maps alone. See `answers`."""
        answers = self.answers(images, classes, **options)
        return (each.anomaly for each in answers if each.anomaly is not None)

    def _answers(
        self, images: Iterable[Any], bank: StateBank | None, names: tuple[str, ...], size: int
    ) -> Iterator[Answers]:
        def look(alike: list[np.ndarray]) -> Iterable[AnomalyMap]:
            return self.head(self.detector(alike, bank), alike[0].shape[:2])

        for found in in_batches(images, size, look):
            yield Answers(found.image_hw, names, anomaly=found)

    def _load(self, path: Path) -> None:
        if not isinstance(self.detector, MemoryDetector):
            raise ConfigError(f"'{path}' is a memory of patches, which only patch-memory reads")
        self.detector.load(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        self.learned = {"memory": path.name, "sha256": digest}
