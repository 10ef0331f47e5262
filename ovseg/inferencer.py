"""The user's handle: images and words in, results out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ovseg
from ovseg.answers import Answers, Task, check_tasks
from ovseg.devices import resolve_device, resolve_dtype
from ovseg.encoders.clip_loading import default_encoder, load_clip
from ovseg.encoders.token_merging import TokenMerging
from ovseg.encoders.weights import BUNDLED
from ovseg.errors import ConfigError
from ovseg.feature_cache import FeatureCache, image_key
from ovseg.heads import SegmentationHead
from ovseg.heads.background import BACKGROUND_NAMES, SCENE_NAMES, with_background
from ovseg.images import read_image
from ovseg.methods import UNMERGED, check_options, options_of
from ovseg.parts import Part, describe_part, load_parts, part_names, refinement_names
from ovseg.recipe import Recipe
from ovseg.regions import region_ids
from ovseg.results import Segmentation
from ovseg.score_map import ScoreMap
from ovseg.scorer import Scorer
from ovseg.structures import DenseFeatures, TextBank
from ovseg.tasks import TaskHeads, Words
from ovseg.text.encoder import OnLong, TextEncoder
from ovseg.text.enrichment import read_descriptions
from ovseg.text.kinds import things_of
from ovseg.text.vocabulary import Vocabulary
from ovseg.wording import Wording


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
        merging: let alike tokens merge on their way through CLIP's tower and a DINO guide: a
            `TokenMerging`, or the share of tokens that each block leaves, as 0.9. Faster, and a little less
            accurate.
        dtype: of the towers: float32, bf16, fp16 (not on the CPU). Scores are float32 always.
        threshold, area_threshold, keep_scores: see `SegmentationHead`.
        heads: a head for each task, with options of their own; then the three before are not asked.
        outlines: let `sam` draw the outlines of instances and boxes, whatever the method.
        reject: steps that follow all refinement and say "none of these" of pixels or images, such as
            `ovseg.heads.rejection.Rejection`.
        no_tower: a checkpoint of CLIPN, whose second text tower says of words that they are not shown;
            rejection by ctw and atd asks it. See `ovseg.no_tower`.
        attributes: a second vocabulary ("red, wooden"), each scored by itself on every box that is found
            (OvarNet's use of two vocabularies); see `ovseg.heads.regions.describe`.
        on_long: a prompt longer than the model's context is an "error", or is cut ("truncate").
        text_cache: folder for encoded words; None is the user's cache folder.
        feature_cache: folder for encoded images, which are then asked again without any image tower: those
            are loaded at the first image that is not there. Entries are float16, also in the run that
            writes them, so that every run has the same results.
        options: the method's own options, such as `short_side` or `temperature`.

    Raises:
        ConfigError: unknown method, option, encoder, device or dtype; the method or its guide cannot merge.
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
        merging: TokenMerging | float | None = None,
        device: str = "auto",
        dtype: str = "float32",
        threshold: float = 0.0,
        area_threshold: float = 0.0,
        keep_scores: bool = False,
        heads: TaskHeads | None = None,
        outlines: bool = False,
        reject: Sequence[nn.Module] = (),
        no_tower: str | Path | None = None,
        attributes: Any = None,
        on_long: OnLong = "error",
        text_cache: str | Path | None = None,
        feature_cache: str | Path | None = None,
        **options: Any,
    ) -> None:
        if isinstance(method, str):
            check_options(method, options)  # before any weights are loaded
        if isinstance(merging, int | float):
            merging = TokenMerging(float(merging))
        if merging is not None and method in UNMERGED:
            raise ConfigError(
                f"method '{method}' steps through CLIP's blocks by itself, if at all, and merges no tokens: "
                f"leave merging out, or choose a method that opens the last block, such as naclip"
            )
        if weights is not None and encoder is None:
            raise ConfigError(
                f"weights '{weights}' need an encoder: name the model that they are of, such as "
                f"clip_vitb16_openai or an open_clip architecture like ViT-B-16-quickgelu"
            )
        given = {"guide": guide, "sam": sam, "saliency": saliency, "convolutions": convolutions}
        steps = refinement_names(refine)
        descriptions = None if enrich is None else read_descriptions(enrich)  # before any weights are loaded
        name = encoder or default_encoder()
        chosen = part_names(method, given, steps, bundled=name == BUNDLED, outlines=outlines)
        target = resolve_device(device)
        torch_dtype = resolve_dtype(dtype, target)
        if heads is None:
            heads = TaskHeads(
                SegmentationHead(threshold=threshold, area_threshold=area_threshold, keep_scores=keep_scores)
            )
        lazy = feature_cache is not None
        loaded = load_clip(name, weights=None if weights is None else Path(weights), image_tower=not lazy)
        parts: dict[str, Part] = {**load_parts(chosen)} if not lazy else chosen
        if outlines:
            heads.sam = load_parts({"sam": parts["sam"]})["sam"].to(target)
            parts = parts | {"sam": heads.sam}  # one SAM, also where it draws for the method as well
        backend = "inductor" if compile is True else compile or None
        self.recipe = Recipe(
            method,
            loaded,
            parts,
            steps,
            options,
            target,
            torch_dtype,
            backend,
            tuple(reject),
            merging,
            outlines,
        )
        self._scorer = None if lazy else self.recipe.scorer()
        self.method = method if isinstance(method, str) else method.__name__
        self.options = (options_of(method) if isinstance(method, str) else {}) | options
        self.parts = {
            part: describe_part(part, each, self.recipe.parts[part]) for part, each in chosen.items()
        }
        self.dtype = dtype
        self.notice: str | None = loaded.notice
        self.text_encoder = TextEncoder.of(loaded).to(target)
        self.wording = Wording(
            self.text_encoder,
            descriptions=descriptions,
            no_tower=no_tower,
            attributes=attributes,
            on_long=on_long,
            cache=text_cache,
        )
        self.heads = heads
        self.refine = [type(step).__name__ for step in self.reader.refine]
        self.feature_cache = None if feature_cache is None else FeatureCache(feature_cache, self.image_side())

    @property
    def scorer(self) -> Scorer:
        """The method with all its networks; with a feature cache these are loaded when first needed."""
        if self._scorer is None:
            self._scorer = self.recipe.scorer()
        return self._scorer

    @property
    def reader(self) -> Scorer:
        """What compares features with words and refines: `scorer`, or one without image towers until then."""
        return self._scorer or self._towerless or self.scorer

    @cached_property
    def _towerless(self) -> Scorer | None:
        return self.recipe.reader()

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.recipe.device

    @property
    def head(self) -> Any:
        """The head that gives each pixel a class."""
        return self.heads.segment

    @head.setter
    def head(self, head: Any) -> None:
        self.heads.segment = head

    def image_side(self) -> dict[str, Any]:
        """All that changes features, JSON-ready."""
        return {
            "method": self.method,
            "options": self.options,
            "encoder": self.recipe.clip.name,
            "weights_sha256": self.recipe.clip.weights_sha256,
            "parts": self.parts,
            "dtype": self.dtype,
            **({} if self.recipe.merging is None else {"merging": asdict(self.recipe.merging)}),
        }

    def describe(self) -> dict[str, Any]:
        """All that changes results, JSON-ready: method, options, encoder and its weights, head, versions."""
        import open_clip

        return {
            **self.image_side(),
            "refine": self.refine,
            **({"outlines": True} if self.recipe.outlines else {}),
            **({"scenes": self.heads.scenes} if self.heads.scenes else {}),
            "reject": [str(each) for each in self.recipe.reject],
            **self.wording.describe(),
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
        if vocabulary.prototypes is not None:
            vocabulary.prototypes.check(self.describe())
        return vocabulary, self.wording.bank(vocabulary, templates)

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
        closed = backdrop = scenes = states = None
        if {"instances", "detect", "count"} & set(tasks) and not bank.background:
            backdrop = self.bank(BACKGROUND_NAMES, templates)[1]
            closed = with_background(bank, backdrop)
            scenes = self.bank(SCENE_NAMES, templates)[1] if self.heads.scenes else None
        if "anomaly" in tasks:
            states = self.wording.states(bank)
        described = self.wording.described() if "detect" in tasks else None
        things = things_of(vocabulary)
        return Words(bank, closed, backdrop, scenes, states, things, vocabulary.colors, described)

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
            [region_ids(each, image) for each, image in zip(regions, pixels, strict=True)] if regions else ()
        )
        features = self.scorer.encode(self.scorer.prepare(pixels, ids), pixels[0].shape[:2])
        for step in self.scorer.refine:
            watch: Any = getattr(step, "watch", None)
            if watch is not None:  # what refinement asks of the image, whatever the words
                features = watch(features)
        return features

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
        def refined(features: DenseFeatures, bank: TextBank) -> ScoreMap:
            return self.reader.refined(self.reader.score(features, bank), features)

        return self.heads(features, words, tasks, refined, self.reader.score)

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
        size = (1 if self.recipe.device.type == "cpu" else 8) if batch_size is None else batch_size
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
            ids = [] if regions is None else [region_ids(next(regions, None), image) for image in batch]
            by_size: dict[tuple[int, int], list[int]] = {}
            results: dict[int, Answers] = {}
            for index, image in enumerate(batch):
                cached = self._cached(image, ids[index] if ids else None)
                if cached is None:
                    by_size.setdefault(image.shape[:2], []).append(index)
                else:
                    results[index] = self._ask(cached, words, tasks)[0]
            for indices in by_size.values():
                images_of, ids_of = [batch[i] for i in indices], [ids[i] for i in indices if ids]
                for features, those in self._encoded(images_of, ids_of, indices):
                    results.update(zip(those, self._ask(features, words, tasks), strict=True))
            yield from (results[index] for index in range(len(batch)))

    def _encoded(
        self, images: Sequence[np.ndarray], regions: Sequence[np.ndarray], indices: Sequence[int]
    ) -> Iterator[tuple[DenseFeatures, Sequence[int]]]:
        """Features with the images that they are of; one by one where they go through the cache."""
        features = self.encode(images, regions)
        if self.feature_cache is None:
            yield features, indices
            return
        for at, index in enumerate(indices):
            ids = regions[at] if regions else None
            kept = self.feature_cache.save(image_key(images[at], ids), features.select(at))
            yield self._with_picture(kept, images[at], ids), [index]

    def _cached(self, image: np.ndarray, regions: np.ndarray | None) -> DenseFeatures | None:
        kept = None if self.feature_cache is None else self.feature_cache.load(image_key(image, regions))
        return None if kept is None else self._with_picture(kept, image, regions)

    def _with_picture(
        self, kept: DenseFeatures, image: np.ndarray, regions: np.ndarray | None
    ) -> DenseFeatures:
        """Features of the cache, on the device, with the picture that they are of."""
        found = kept.pictures.regions if kept.pictures is not None else ()
        pictures = self.reader.prepare([image], found or (() if regions is None else (regions,)))
        return replace(kept.to(self.recipe.device), pictures=pictures)
