"""Images in, features kept, answers out: what the page and its endpoints ask.

Models, pictures, features and answers are each kept up to a limit, so that another word, threshold or opacity
costs no image tower, and nothing grows with the number of visitors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from ovseg.anomaly_build import MEMORY, PUBLISHED_GUIDE, build_anomaly_inferencer, given_threshold
from ovseg.anomaly_results import AnomalyMap
from ovseg.answers import Answers, Task
from ovseg.demo.catalogue import check_present, how_to_get, is_missing, options_for
from ovseg.demo.lru import Lru
from ovseg.demo.settings import Settings
from ovseg.encoders.weights import BUNDLED
from ovseg.errors import CheckpointError, ConfigError, ImageError
from ovseg.feature_cache import image_key
from ovseg.images import Limits, read_image
from ovseg.inferencer import Inferencer
from ovseg.predictors import build_heads
from ovseg.scorer import Scorer
from ovseg.structures import DenseFeatures, TextBank
from ovseg.tasks import Words
from ovseg.text.states import anomaly_bank
from ovseg.windows import resize_image, resized_hw

MEGABYTE = 2**20
#: Good images of the anomaly tab.
MAX_GOOD = 16
#: Answers are shown at this long side: outlines of small pictures are sharp, and large ones answer as fast.
SHOWN_SIDE = 720

Note = Callable[[float, str], Any]


@dataclass(frozen=True)
class Picture:
    """An image as the page has it.

    Attributes:
        pixels: RGB, at its own size or scaled down to the page's limit; what is encoded.
        shown: the same at the size at which the page shows results.
        key: of its pixels.
        given_hw: the file's size.
        name: the file's, for downloads.
    """

    pixels: UInt8[np.ndarray, "H W 3"]
    shown: UInt8[np.ndarray, "_ _ 3"]
    key: str
    given_hw: tuple[int, int]
    name: str

    @property
    def hw(self) -> tuple[int, int]:
        """Size of `pixels`."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def shown_hw(self) -> tuple[int, int]:
        """Size of `shown`."""
        return self.shown.shape[0], self.shown.shape[1]


@dataclass(frozen=True)
class Model:
    """A method with its networks; `turn` is held while it encodes."""

    inferencer: Inferencer
    turn: Lock

    @property
    def scorer(self) -> Scorer:
        """What compares features with words."""
        return self.inferencer.reader


@dataclass(frozen=True)
class Asked:
    """An answer, and the seconds that it took; `encode_s` is 0 where features were reused."""

    answers: Answers
    encode_s: float
    answer_s: float


class Engine:
    """Pictures, models and their answers.

    Args:
        device: see `ovseg.Inferencer`.
        templates: see `ovseg.Inferencer.bank`.
        options: of methods; each takes those that it has.
        max_side: larger images are scaled down to this long side.
        max_pixels: larger images are refused before their pixels are decoded.
        features_mb: memory for features, affinities and pictures, each.
        models_kept: models held at once.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        templates: str = "imagenet80",
        options: Mapping[str, Any] | None = None,
        max_side: int = 1280,
        max_pixels: int = 64_000_000,
        features_mb: int = 384,
        models_kept: int = 4,
    ) -> None:
        for name, value in (
            ("max_side", max_side),
            ("features_mb", features_mb),
            ("models_kept", models_kept),
        ):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        self.device = device
        self.templates = templates
        self.options = dict(options or {})
        self.max_side = max_side
        self.limits = Limits(max_pixels=max_pixels)
        self.pictures: Lru[Picture] = Lru(
            features_mb * MEGABYTE, lambda each: each.pixels.nbytes + each.shown.nbytes
        )
        self.features: Lru[tuple[DenseFeatures, float]] = Lru(
            features_mb * MEGABYTE, lambda each: _bytes(each[0])
        )
        self.models: Lru[Model] = Lru(models_kept)
        self.memories: Lru[tuple[Any, Lock]] = Lru(2)
        self.asked: Lru[Answers] = Lru(24)
        self.states: Lru[TextBank] = Lru(1000)
        self.extras: Lru[Any] = Lru(12)
        self._reading = Lock()

    def read(self, path: Path) -> Picture:
        """An uploaded file. One is decoded at a time, so that twenty large ones do not meet in memory.

        Raises:
            ImageError: damaged, of no known format, or too large; by the file's name without its folder.
        """
        try:
            stamp = path.stat().st_mtime_ns
        except OSError:
            raise ImageError(f"{path.name}: the upload is gone; choose the image again") from None
        return self.pictures.get((path, stamp), lambda: self._read(path))

    def _read(self, path: Path) -> Picture:
        try:
            with self._reading:
                image = read_image(path.read_bytes(), limits=self.limits)
                given_hw = (image.shape[0], image.shape[1])
                side = max(given_hw)
                if side > self.max_side:
                    image = smaller(image, self.max_side)
        except ImageError as error:
            raise ImageError(f"{path.name}: {error}") from error
        shown = image
        if max(image.shape[:2]) > SHOWN_SIDE:
            shown = smaller(image, SHOWN_SIDE)
        elif max(image.shape[:2]) < SHOWN_SIDE:
            shown = resize_image(image, resized_hw(image.shape[:2], 10**6, SHOWN_SIDE))
        return Picture(image, shown, image_key(image), given_hw, path.stem)

    def model(self, method: str, encoder: str, note: Note | None = None) -> Model:
        """A method's networks, loaded once.

        Raises:
            ConfigError: an unknown name.
            CheckpointError: weights that are not here.
        """

        def load() -> Model:
            check_present(method, encoder)
            if note is not None:
                note(0.1, f"Loading {method} with {encoder}")
            options = options_for(method, encoder, self.options)
            made = Inferencer(method, encoder=encoder, device=self.device, **options)
            return Model(made, Lock())

        return self.models.get((method, encoder), load)

    def encoded(
        self, picture: Picture, method: str, encoder: str, note: Note | None = None
    ) -> tuple[DenseFeatures, float, bool]:
        """Features of a picture, the seconds that they took once, and whether they were there already."""
        key = (method, encoder, picture.key)
        there = key in self.features
        model = self.model(method, encoder, note)

        def encode() -> tuple[DenseFeatures, float]:
            with model.turn:
                if note is not None:
                    note(0.35, "Encoding the image (once; other words reuse it)")
                start = time.perf_counter()
                features = model.inferencer.encode([picture.pixels])
                return features, time.perf_counter() - start

        features, seconds = self.features.get(key, encode)
        return features, seconds, there

    def words(self, model: Model, settings: Settings, task: Task) -> Words:
        """The settings' words, encoded for a task."""
        with model.turn:
            if task != "anomaly":
                return model.inferencer.words(settings.vocabulary(), (task,), self.templates)
            words = model.inferencer.words(settings.vocabulary(), (), self.templates)
            asked, encoder = words.asked, model.inferencer.text_encoder

            def states(*names: str) -> TextBank:
                return anomaly_bank(encoder, names, on_long="truncate")

            # Thing by thing, so that another word encodes the states of one.
            names = [name for k, name in enumerate(asked.names) if k not in asked.background]
            banks = [self.states.get((settings.encoder, name), partial(states, name)) for name in names] or [
                states()
            ]  # which says what is missing
            together = TextBank(
                torch.cat([each.embeddings for each in banks]),
                torch.cat([each.class_of_query for each in banks]),
                banks[0].names,
            )
            return replace(words, states=together)

    def ask(
        self,
        picture: Picture,
        settings: Settings,
        task: Task,
        *,
        size_hw: tuple[int, int] | None = None,
        scores: bool = False,
        note: Note | None = None,
    ) -> Asked:
        """What a picture answers to the words.

        Args:
            picture: of `read`.
            settings: words, threshold, method and encoder.
            task: what is asked.
            size_hw: of the answer, by default the picture's own.
            scores: keep class probabilities.
            note: told how far it is.
        """
        settings.vocabulary()  # unusable words are told before an image is encoded
        features, seconds, there = self.encoded(picture, settings.method, settings.encoder, note)
        if note is not None:
            note(0.85, "Comparing with the words")
        start = time.perf_counter()
        question = (settings.words, settings.background, settings.threshold)
        key: Hashable = (picture.key, settings.method, settings.encoder, task, question, size_hw, scores)
        found = self.asked.get(key, lambda: self._answers(features, settings, task, size_hw, scores))
        return Asked(found, 0.0 if there else seconds, time.perf_counter() - start)

    @torch.no_grad()
    def _answers(
        self,
        features: DenseFeatures,
        settings: Settings,
        task: Task,
        size_hw: tuple[int, int] | None,
        scores: bool,
    ) -> Answers:
        model = self.model(settings.method, settings.encoder)
        words, scorer = self.words(model, settings, task), model.scorer
        if size_hw is not None:
            features = replace(features, resampling=features.resampling.then(size_hw))
        threshold = settings.threshold or None
        heads = build_heads(
            threshold=threshold,
            keep_scores=scores,
            anomaly_threshold=given_threshold(threshold) if task == "anomaly" else None,
        )
        return heads(
            features,
            words,
            (task,),
            lambda found, bank: scorer.refined(scorer.score(found, bank), found),
            scorer.score,
        )[0]

    def compare_with_good(
        self, picture: Picture, good: Sequence[Picture], encoder: str, note: Note | None = None
    ) -> AnomalyMap:
        """How a picture differs from good ones, by the patches of a guide (`patch-memory`).

        Raises:
            ConfigError: more than `MAX_GOOD` good images.
            CheckpointError: the guide's weights are not here.
        """
        if len(good) > MAX_GOOD:
            raise ConfigError(f"{len(good)} good images: the page takes up to {MAX_GOOD}")
        if encoder != BUNDLED and is_missing(PUBLISHED_GUIDE):
            raise CheckpointError(how_to_get((PUBLISHED_GUIDE,)))

        def learn() -> tuple[Any, Lock]:
            if note is not None:
                note(0.2, f"Learning from {len(good)} good images (once)")
            images = [each.pixels for each in good]
            return build_anomaly_inferencer(MEMORY, encoder=encoder, good=images, device=self.device), Lock()

        memory_key = (encoder, tuple(each.key for each in good))
        memory, turn = self.memories.get(memory_key, learn)

        def look() -> AnomalyMap:
            with turn:
                [answer] = memory.answers([picture.pixels], "object", tasks=("anomaly",))
                return answer.of("anomaly")

        if note is not None:
            note(0.7, "Comparing with the good images")
        return self.extras.get(("good", memory_key, picture.key), look)


def smaller(image: UInt8[np.ndarray, "H W 3"], long_side: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """The image scaled down to a long side, every pixel counted (a resize by points would flicker)."""
    import cv2

    height, width = resized_hw(image.shape[:2], 10**6, long_side)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _bytes(features: DenseFeatures) -> int:
    """Of memory that features hold."""
    tensors = [features.grid, features.image, features.objectness, features.resampling.rows]
    tensors.append(features.resampling.cols)
    if features.pictures is not None:
        tensors.append(features.pictures.image)
    if features.sam is not None:
        tensors.append(features.sam.embedding)
    held = sum(each.numel() * each.element_size() for each in tensors if each is not None)
    originals = () if features.pictures is None else features.pictures.originals
    return held + sum(each.nbytes for each in originals)
