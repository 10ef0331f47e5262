"""The user's handle: images and words in, results out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ovseg
from ovseg.answers import Answers, Task, check_tasks
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.clip_loading import default_encoder, load_clip
from ovseg.encoders.weights import BUNDLED
from ovseg.errors import ConfigError
from ovseg.heads import SegmentationHead
from ovseg.heads.background import BACKGROUND_NAMES, with_background
from ovseg.images import read_image
from ovseg.methods import build_method, check_options, options_of, parts_of
from ovseg.parts import (
    Part,
    asks_sam,
    build_refinements,
    describe_part,
    load_parts,
    part_names,
    refinement_names,
)
from ovseg.regions import check_regions, read_regions
from ovseg.results import Segmentation
from ovseg.scorer import Scorer
from ovseg.structures import DenseFeatures, TextBank
from ovseg.tasks import TaskHeads, Words
from ovseg.text.encoder import TextEncoder
from ovseg.text.enrichment import encode_attributes, enrich_bank, read_descriptions
from ovseg.text.states import state_bank
from ovseg.text.vocabulary import Vocabulary

#: Encoded vocabularies that are kept.
BANKS_KEPT = 8
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(device: str = "auto") -> torch.device:
    """A device by name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: no such device here.
    """
    has_mps = torch.backends.mps.is_available()
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"unknown device '{device}': use auto, cpu, cuda, cuda:1 ... or mps") from None
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device '{device}' was asked for, and torch sees {torch.cuda.device_count()} CUDA devices: use "
            f"device 'cpu', or install a CUDA build of torch"
        )
    if resolved.type == "mps" and not has_mps:
        raise ConfigError("device 'mps' was asked for and is not available here: use device 'cpu'")
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """A dtype by name.

    Raises:
        ConfigError: unknown, or fp16 on a CPU.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype '{dtype}': use {', '.join(DTYPES)}")
    if dtype == "fp16" and device.type == "cpu":
        raise ConfigError(
            "dtype fp16 is refused on the CPU: it has no fast half-precision kernels, and some activations "
            "of CLIP overflow; use bf16 (fast where the processor has it) or float32"
        )
    return DTYPES[dtype]


class Inferencer:
    """A method with weights, ready for images and words.

    Example:
        >>> segment = Inferencer("maskclip", encoder="bundled")
        >>> for result in segment([image], "dog, pizza, grass"):
        ...     print(result.shares())
        >>> features = segment.encode([image])
        >>> [answer] = segment.ask(features, "dog, pizza", tasks=("detect", "count"))

    Args:
        method: a published method's name (see `ovseg.methods.METHODS`), or a function of your own that builds
            a scorer around an encoder and takes the options.
        encoder: a name of `ovseg.encoders.weights`, or `architecture:tag` of open_clip; None takes the best
            in the local cache, else the default download. "bundled" is the small model in the package.
        weights: a local file instead of the encoder's own; then `encoder` must be named.
        guide, sam, saliency, convolutions: the networks beside CLIP that the method takes, by name
            ("dino_vitb8", "sam_vitb", "bundled", "dino_vitb8=FILE") or as modules; None takes those that it
            was published with, or the bundled ones with the bundled encoder.
        refine: what follows the scores, in order: "pamr", "sam" (asks the part `sam`), "regions", several as
            "pamr,sam" or a list, "none"; None is the method's own.
        enrich: a YAML or JSON file of sentences by class: words take on the attributes that the sentences
            share (ExCEL's text semantic enrichment), with any method.
        compile: let torch compile the transformer blocks, which takes a minute at the first image; a name
            instead of True picks one of torch.compile's backends.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: of the towers: float32, bf16, fp16 (not on the CPU). Scores are float32 always.
        threshold, area_threshold, keep_scores: see `SegmentationHead`.
        heads: a head for each task, with options of their own; then the three before are not asked.
        text_cache: folder for encoded words; None is the user's cache folder.
        options: the method's own options, such as `short_side` or `temperature`.

    Raises:
        ConfigError: unknown method, option, encoder, device or dtype.
        CheckpointError: weights are missing or unusable.
    """

    def __init__(
        self,
        method: str | Callable[..., Scorer] = "sclip",
        *,
        encoder: str | None = None,
        weights: str | Path | None = None,
        guide: Part | None = None,
        sam: Part | None = None,
        saliency: Part | None = None,
        convolutions: Part | None = None,
        refine: str | Sequence[str | nn.Module] | None = None,
        enrich: str | Path | None = None,
        compile: bool | str = False,
        device: str = "auto",
        dtype: str = "float32",
        threshold: float = 0.0,
        area_threshold: float = 0.0,
        keep_scores: bool = False,
        heads: TaskHeads | None = None,
        text_cache: str | Path | None = None,
        **options: Any,
    ) -> None:
        if isinstance(method, str):
            check_options(method, options)  # before any weights are loaded
        if weights is not None and encoder is None:
            raise ConfigError(
                f"weights '{weights}' need an encoder: name the model that they are of, such as "
                f"clip_vitb16_openai or an open_clip architecture like ViT-B-16-quickgelu"
            )
        given = {"guide": guide, "sam": sam, "saliency": saliency, "convolutions": convolutions}
        steps = refinement_names(refine)
        descriptions = None if enrich is None else read_descriptions(enrich)
        name = encoder or default_encoder()
        chosen = part_names(method, given, steps, bundled=name == BUNDLED)
        target = resolve_device(device)
        torch_dtype = resolve_dtype(dtype, target)
        if heads is None:
            heads = TaskHeads(
                SegmentationHead(threshold=threshold, area_threshold=area_threshold, keep_scores=keep_scores)
            )
        loaded = load_clip(name, weights=None if weights is None else Path(weights))
        parts = load_parts(chosen)
        tower = ClipEncoder(
            loaded.model.visual,
            mean=loaded.mean,
            std=loaded.std,
            name=loaded.name,
            weights_sha256=loaded.weights_sha256,
        )
        self.method = method if isinstance(method, str) else method.__name__
        self.options = (options_of(method) if isinstance(method, str) else {}) | options
        self.parts = {part: describe_part(each, parts[part]) for part, each in chosen.items()}
        self.dtype = dtype
        self.notice: str | None = loaded.notice
        build = partial(build_method, method) if isinstance(method, str) else method
        if isinstance(method, str):
            takes = parts_of(method)
        else:  # a maker gets what was given, but not a SAM that only a refinement asks
            takes = tuple(part for part in parts if not (part == "sam" and asks_sam(steps)))
        for_method = {part: parts[part] for part in takes if part in parts}
        self.scorer: Scorer = build(tower, **for_method, **options).eval()
        if steps is not None:
            self.scorer.refine = nn.ModuleList(build_refinements(steps, parts))
        self.refine = [type(step).__name__ for step in self.scorer.refine]
        self.text_encoder = TextEncoder(
            loaded.model,
            loaded.tokenizer,
            context_length=loaded.context_length,
            weights_id=loaded.weights_sha256,
        ).to(target)
        self.enrich = descriptions
        self._attributes = (
            None if descriptions is None else encode_attributes(self.text_encoder, descriptions)
        )
        networks: list[Any] = [tower, *parts.values()]
        for module in networks:
            module.cast(torch_dtype)
            if compile:
                module.compile_blocks("inductor" if compile is True else compile)
        self.scorer.to(target)
        self.heads = heads
        self.text_cache = None if text_cache is None else Path(text_cache)
        self._banks: dict[tuple, TextBank] = {}

    @property
    def head(self) -> Any:
        """The head that gives each pixel a class."""
        return self.heads.segment

    @head.setter
    def head(self, head: Any) -> None:
        self.heads.segment = head

    def describe(self) -> dict[str, Any]:
        """All that changes results, JSON-ready: method, options, encoder and its weights, head, versions."""
        import open_clip

        encoder = self.scorer.encoder
        return {
            "method": self.method,
            "options": self.options,
            "encoder": encoder.name,
            "weights_sha256": encoder.weights_sha256,
            "parts": self.parts,
            "refine": self.refine,
            "enrich": self.enrich,
            "dtype": self.dtype,
            "threshold": self.head.threshold,
            "area_threshold": self.head.area_threshold,
            "versions": {
                "ovseg": ovseg.__version__,
                "torch": torch.__version__,
                "open_clip": open_clip.__version__,
            },
        }

    def bank(
        self, classes: Any, templates: str | Sequence[str] = "imagenet80"
    ) -> tuple[Vocabulary, TextBank]:
        """Words, parsed and encoded once.

        Args:
            classes: anything that `Vocabulary.parse` takes: "cat, dog", a list, a file, a shipped list.
            templates: a template set's name, or templates with one `{}` each.
        """
        vocabulary = Vocabulary.parse(classes)

        def encode() -> TextBank:
            bank = self.text_encoder.bank(vocabulary, templates, cache_dir=self.text_cache)
            if self._attributes is not None:
                bank = enrich_bank(bank, self._attributes.to(bank.embeddings.device))
            return bank

        key = (vocabulary.fingerprint(), templates if isinstance(templates, str) else tuple(templates))
        return vocabulary, self._kept(key, encode)

    def words(
        self,
        classes: Any,
        tasks: Iterable[Task] = ("segment",),
        templates: str | Sequence[str] = "imagenet80",
    ) -> Words:
        """Words, encoded for all that the tasks compare them with.

        Raises:
            VocabularyError: no classes, or unusable ones.
        """
        vocabulary, bank = self.bank(classes, templates)
        closed = states = None
        if {"instances", "detect", "count"} & set(tasks) and not bank.background:
            closed = with_background(bank, self.bank(BACKGROUND_NAMES, templates)[1])
        if "anomaly" in tasks:
            states = self._states([name for k, name in enumerate(bank.names) if k not in bank.background])
        return Words(
            bank, closed, states, tuple(each.thing for each in vocabulary.classes), vocabulary.colors
        )

    def _states(self, names: Sequence[str]) -> TextBank:
        """Things in order and out of order, as two classes for which all names speak."""

        def encode() -> TextBank:
            states = torch.cat([state_bank(self.text_encoder, name, "generic").states for name in names])
            return TextBank(states, torch.arange(len(states)) % 2, ("normal", "abnormal"))

        return self._kept(("states", *names), encode)

    def _kept(self, key: tuple, encode: Callable[[], TextBank]) -> TextBank:
        """The bank of that key; of those that were asked for, the latest are kept."""
        bank = self._banks.pop(key, None) or encode().to(self.scorer.device, torch.float32)
        self._banks[key] = bank
        while len(self._banks) > BANKS_KEPT:
            del self._banks[next(iter(self._banks))]
        return bank

    def encode(self, images: Sequence[Any], regions: Sequence[Any] = ()) -> DenseFeatures:
        """Images of one size through the image towers: once, for any words and tasks afterwards.

        Args:
            images: see `answers`.
            regions: see `answers`.

        Raises:
            ImageError: an image cannot be read.
            ShapeError: sizes differ.
        """
        pixels = [read_image(image) for image in images]
        ids = (
            [_region_ids(each, image) for each, image in zip(regions, pixels, strict=True)] if regions else ()
        )
        return self.scorer.encode(self.scorer.prepare(pixels, ids), pixels[0].shape[:2])

    def ask(
        self,
        features: DenseFeatures,
        classes: Any,
        tasks: str | Iterable[str] = ("segment",),
        *,
        templates: str | Sequence[str] = "imagenet80",
    ) -> list[Answers]:
        """What features answer to words; no image tower runs.

        Args:
            features: of `encode`.
            classes: see `bank`. For anomaly they name the things that may be out of order.
            tasks: of `ovseg.answers.TASKS`.
            templates: see `bank`.

        Returns:
            One for each image.

        Raises:
            VocabularyError: no classes, or unusable ones.
            ConfigError: an unknown task.
        """
        named = check_tasks(tasks)
        return self._ask(features, self.words(classes, named, templates), named)

    @torch.no_grad()
    def _ask(self, features: DenseFeatures, words: Words, tasks: Sequence[Task]) -> list[Answers]:
        def plain(bank: TextBank) -> Any:
            return self.scorer.score(features, bank)

        return self.heads(
            features, words, tasks, lambda bank: self.scorer.refined(plain(bank), features), plain
        )

    def __call__(self, images: Iterable[Any], classes: Any, **options: Any) -> Iterator[Segmentation]:
        """A class for every pixel: the answers to the task "segment". See `answers`."""
        answers = self.answers(images, classes, tasks=("segment",), **options)
        return (each.segmentation for each in answers if each.segmentation is not None)

    def answers(
        self,
        images: Iterable[Any],
        classes: Any,
        *,
        tasks: str | Iterable[str] = ("segment",),
        batch_size: int | None = None,
        templates: str | Sequence[str] = "imagenet80",
        regions: Iterable[Any] | None = None,
    ) -> Iterator[Answers]:
        """Results, lazily and in order. Images may differ in size: equal ones are batched together.

        Args:
            images: anything that `ovseg.images.read_image` takes: paths, PIL images, encoded bytes, arrays
                (RGB, `(H, W, 3)` uint8).
            classes: see `bank`.
            tasks: of `ovseg.answers.TASKS`, any number; the image towers run once.
            batch_size: images taken at a time, by default 1 on a CPU and 8 elsewhere; results do not
                depend on it.
            templates: see `bank`.
            regions: for each image its region ids `(H, W)` or a file of them, for CorrCLIP and region voting;
                None lets SAM make them, where they are needed.

        Raises:
            VocabularyError: no classes, or unusable ones. Raised at the call, not at the first result.
            ConfigError: an unknown task.
            ImageError: an image cannot be read; raised when its turn comes.
        """
        size = (1 if self.scorer.device.type == "cpu" else 8) if batch_size is None else batch_size
        if size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {size}")
        named = check_tasks(tasks)
        words = self.words(classes, named, templates)
        return self._answers(iter(images), None if regions is None else iter(regions), words, named, size)

    def _answers(
        self,
        images: Iterator[Any],
        regions: Iterator[Any] | None,
        words: Words,
        tasks: Sequence[Task],
        size: int,
    ) -> Iterator[Answers]:
        while batch := [read_image(image) for image in islice(images, size)]:
            ids = [] if regions is None else [_region_ids(next(regions, None), image) for image in batch]
            by_size: dict[tuple[int, int], list[int]] = {}
            for index, image in enumerate(batch):
                by_size.setdefault(image.shape[:2], []).append(index)
            results: dict[int, Answers] = {}
            for indices in by_size.values():
                features = self.encode([batch[i] for i in indices], [ids[i] for i in indices if ids])
                results.update(zip(indices, self._ask(features, words, tasks), strict=True))
            yield from (results[index] for index in range(len(batch)))


def _region_ids(ids: Any, image: np.ndarray) -> np.ndarray:
    if ids is None:
        raise ConfigError("there are fewer region maps than images: give one for each")
    found = read_regions(ids) if isinstance(ids, str | os.PathLike) else np.asarray(ids)
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.integer):
        raise ConfigError(
            f"a region map is (H, W) of integers, or the path of one, got {found.dtype} {found.shape}"
        )
    check_regions(found, image.shape[:2])
    return found.astype(np.int32)
