"""A trained DenseCLIP, asked as an `Inferencer` is asked.

The decoder knows the classes that it was trained with, all of them or any choice. Any other words are
answered by the score map alone, which takes them as CLIP does, on its coarser grid and without the decoder's
outlines.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

import ovseg
from ovseg.answers import Answers, check_tasks
from ovseg.errors import ConfigError
from ovseg.heads import SegmentationHead
from ovseg.images import in_batches
from ovseg.results import Segmentation
from ovseg.score_map import ScoreMap
from ovseg.structures import TextBank
from ovseg.text.vocabulary import Vocabulary
from ovseg.training.denseclip_net import DenseClipNet
from ovseg.windows import WindowPlan, resize_image, resized_hw

log = logging.getLogger(__name__)

Decoder = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Question:
    """Words, ready to be asked.

    Attributes:
        vocabulary: as given.
        bank: its words before they see an image.
        tokens: of the words.
        encoded: the same as `bank` and not normalised; None with pre-model prompting.
        channels: the decoder's channel of each class; None where the score map answers.
    """

    vocabulary: Vocabulary
    bank: TextBank
    tokens: Int[Tensor, "Q L"]
    encoded: Float[Tensor, "1 Q D"] | None
    channels: Int[Tensor, " K"] | None


class DenseClipPredictor:
    """Images and words in, a class for every pixel out.

    Args:
        net: the trained network.
        decode: levels to logits `(B, K, h, w)`, a channel for each class of `net.names`; None: the score map
            answers for these, too.
        windows: how images are cut; the parts are padded with the mean colour to whole cells.
        short_side: pixels to which images are resized first (their long side to 2048 at most).
        head: what reads the logits.
        described: what manifests say beside the network's own.
        notice: one line that a user should see, or None.
    """

    def __init__(
        self,
        net: DenseClipNet,
        decode: Decoder | None,
        *,
        windows: WindowPlan,
        short_side: int,
        head: SegmentationHead | None = None,
        described: dict[str, Any] | None = None,
        notice: str | None = None,
    ) -> None:
        self.net, self.decode = net, decode
        self.windows = replace(windows, fit="pad")
        self.short_side = short_side
        self.head = head or SegmentationHead()
        self.described = described or {}
        self.notice = notice
        self._asked: dict[str, Question] = {}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.net.mean.device

    def describe(self) -> dict[str, Any]:
        """All that changes results, JSON-ready."""
        return {
            "method": "denseclip",
            "encoder": self.net.name,
            "weights_sha256": self.net.weights_sha256,
            "classes": list(self.net.names),
            "answer": "score_map" if self.decode is None else "decoder",
            "short_side": self.short_side,
            "crop": self.windows.crop,
            "stride": self.windows.stride,
            "threshold": self.head.threshold,
            "area_threshold": self.head.area_threshold,
            "versions": {"ovseg": ovseg.__version__, "torch": torch.__version__},
        } | self.described

    def bank(self, classes: Any, templates: Any = None) -> tuple[Vocabulary, TextBank]:
        """Words, parsed and encoded. Templates are not asked: the contexts are learned.

        Raises:
            VocabularyError: no classes, or one that is too long.
        """
        question = self.question(classes)
        return question.vocabulary, question.bank

    @torch.no_grad()
    def question(self, classes: Any) -> Question:
        """The same with all that an answer needs; the latest is kept."""
        vocabulary = Vocabulary.parse(classes)
        key = vocabulary.fingerprint()
        if key not in self._asked:
            self._asked = {key: self._question(vocabulary)}
        return self._asked[key]

    def _question(self, vocabulary: Vocabulary) -> Question:
        known = {name.casefold(): channel for channel, name in enumerate(self.net.names)}
        own = [known.get(name.casefold()) for name in vocabulary.names]
        channels = None
        if None not in own and self.decode is not None:
            texts, classes = list(self.net.names), list(range(len(own)))
            channels = torch.tensor(own)
        else:
            new = [name for name, channel in zip(vocabulary.names, own, strict=True) if channel is None]
            if self.decode is not None:
                log.warning(
                    "the decoder was not trained with %s: the score map answers, without its outlines",
                    ", ".join(f"'{name}'" for name in new[:5]) + (" ..." if len(new) > 5 else ""),
                )
            texts = [query.text for query in vocabulary.queries]
            classes = [query.class_index for query in vocabulary.queries]
        tokens = self.net.tokens_of(texts)
        encoded = self.net.encode(tokens)
        rows = self.net.text(tokens) if encoded is None else encoded[0]
        rows = F.normalize(rows.float(), dim=-1)
        bank = TextBank(
            rows if channels is None else rows[channels.to(rows.device)],
            torch.tensor(classes, device=rows.device),
            vocabulary.names,
            background=vocabulary.background,
            thresholds=vocabulary.thresholds,
        )
        return Question(vocabulary, bank, tokens, encoded, channels)

    @torch.no_grad()
    def score(self, images: Sequence[np.ndarray], question: Question) -> ScoreMap:
        """The map of images of one size: the decoder's logits in the place of cosines, or the score map."""
        net, image_hw = self.net, images[0].shape[:2]
        hw = resized_hw(image_hw, self.short_side)
        pixels = np.stack([resize_image(image, hw) for image in images])
        rgb = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float() / 255
        windows = self.windows.windows(hw, (net.backbone.multiple, net.backbone.multiple))
        grids = []
        for part in windows.cut(rgb, net.mean).split(self.windows.max_batch):
            found = net(net.normalise(part), question.tokens, question.encoded)
            if question.channels is None or self.decode is None:
                grids.append(found.cosine.float())
            else:
                grids.append(self.decode(found.levels)[:, question.channels].float())
        cells_hw = (grids[0].shape[-2], grids[0].shape[-1])
        resampling = windows.resampling(hw, cells_hw, image_hw).to(rgb.device)
        temperature = net.matching.temperature if question.channels is None else 1.0
        return ScoreMap(windows.join(torch.cat(grids)), question.bank, temperature, resampling)

    def __call__(self, images: Iterable[Any], classes: Any, **options: Any) -> Iterator[Segmentation]:
        """A class for every pixel. See `answers`."""
        answers = self.answers(images, classes, **options)
        return (each.segmentation for each in answers if each.segmentation is not None)

    def answers(
        self,
        images: Iterable[Any],
        classes: Any,
        *,
        tasks: str | Iterable[str] = ("segment",),
        batch_size: int | None = None,
        templates: Any = None,
        regions: Iterable[Any] | None = None,
    ) -> Iterator[Answers]:
        """Answers, lazily and in order.

        Args:
            images: anything that `ovseg.images.read_image` takes.
            classes: see `Vocabulary.parse`.
            tasks: "segment"; there is no other, since one of the classes always wins.
            batch_size: images taken at a time; those of one size go together.
            templates: not asked, see `bank`.
            regions: not asked.

        Raises:
            VocabularyError: no classes, or unusable ones.
            ConfigError: another task.
            ImageError: an image cannot be read; raised when its turn comes.
        """
        if check_tasks(tasks) != ("segment",):
            raise ConfigError(
                "DenseCLIP gives each pixel one of its classes: ask it for the task 'segment' only"
            )
        return self._answers(images, self.question(classes), batch_size or 1)

    def _answers(self, images: Iterable[Any], question: Question, size: int) -> Iterator[Answers]:
        vocabulary = question.vocabulary

        def segment(alike: list[np.ndarray]) -> list[Segmentation]:
            return self.head(self.score(alike, question), colors=vocabulary.colors)

        for found in in_batches(images, size, segment):
            yield Answers(found.image_hw, vocabulary.names, segmentation=found)
