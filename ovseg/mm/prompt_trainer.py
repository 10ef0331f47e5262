"""Prompt learning on the dense score map under the Runner: a context, and nothing else, is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from mmseg.structures import SegDataSample
from torch import Tensor

from ovseg.errors import ConfigError
from ovseg.mm.build import build_inferencer, build_vocabulary
from ovseg.mm.core_model import to_rgb
from ovseg.mm.registry import MODELS
from ovseg.mm.trainable import TrainableModel
from ovseg.prompted import PromptedInferencer
from ovseg.results import void_label
from ovseg.structures import Pictures
from ovseg.text.context import LearnedContext
from ovseg.text.vocabulary import Vocabulary
from ovseg.training.prompt_learning import score_map_loss


@MODELS.register_module()
class PromptTrainer(TrainableModel):
    """A context before the names, learned from label maps through any method's score map.

    CoOp learns from the classes of images, for classification; this is its dense form, with the same
    softmax over classes in every pixel. Afterwards the context goes with any words.

    Pipelines crop images as they like (one size per batch is not asked) and pack `gt_sem_seg`, nothing else:
    the method resizes by itself. Pixels of label 255 (65535 from 256 training classes on) count for nothing.

    Args:
        method: the method that makes the score map, see `OvSegmentor`; `softmax_at` plays no part in the
            loss.
        vocabulary: the classes of predictions.
        train_vocabulary: those of the training labels, where they are others.
        encoder, weights, dtype, head: see `OvSegmentor`.
        context: words that the context begins as; None begins with `length` random vectors.
        length: see `LearnedContext`.
        class_specific: a context of its own for each training class.
        classes_per_step: at most so many classes compete in a step, those of the batch and others drawn at
            random; None takes all. For long vocabularies on small machines.
        stride: the loss reads every so-many-th pixel.
        gamma: of a focal loss instead of plain cross-entropy.
        options: of `TrainableModel`.
    """

    def __init__(
        self,
        method: str | Mapping[str, Any],
        vocabulary: Any,
        *,
        train_vocabulary: Any = None,
        encoder: str | None = None,
        weights: str | None = None,
        head: Mapping[str, Any] | None = None,
        dtype: str = "float32",
        context: str | None = None,
        length: int = 16,
        class_specific: bool = False,
        classes_per_step: int | None = None,
        stride: int = 1,
        gamma: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.vocabulary = build_vocabulary(vocabulary)
        same = train_vocabulary is None
        self.train_vocabulary: Vocabulary = self.vocabulary if same else build_vocabulary(train_vocabulary)
        self.void = void_label(len(self.train_vocabulary))
        if stride < 1 or (classes_per_step is not None and classes_per_step < 2):
            raise ConfigError(
                f"stride is at least 1 and classes_per_step at least 2, got {stride} and {classes_per_step}"
            )
        self.classes_per_step, self.stride, self.gamma = classes_per_step, stride, gamma
        self.use(
            build_inferencer(method, encoder=encoder, weights=weights, head=head, device="cpu", dtype=dtype)
        )
        self.encoder = self.scorer.encoder
        own = self.train_vocabulary.names if class_specific else ()
        if context is None:
            text: Any = self.text_encoder.text
            self.context = LearnedContext(text.token_embedding.embedding_dim, length=length, classes=own)
        else:
            self.context = LearnedContext.from_words(self.text_encoder, context, classes=own)
        self.prompted = PromptedInferencer(self.inferencer, self.context)
        self.freeze()

    def trained(self) -> Sequence[str]:
        """The context."""
        return ("context",)

    def loss(
        self, inputs: Sequence[Tensor], data_samples: Sequence[SegDataSample] | None
    ) -> dict[str, Tensor]:
        """Cross-entropy of the pixels (`score_map_loss`), mean over images.

        Raises:
            ConfigError: the images came without labels.
        """
        if data_samples is None or any("gt_sem_seg" not in sample for sample in data_samples):
            raise ConfigError("prompts are learned from label maps: put LoadAnnotations into the pipeline")
        labels = [sample.gt_sem_seg.data[0] for sample in data_samples]
        vocabulary, labels = self._classes_of_step(labels)
        bank = self.context(self.text_encoder, vocabulary).to(self.scorer.device)
        total = []
        for packed, truth in zip(inputs, labels, strict=True):
            pictures: Pictures = self.scorer.prepare([to_rgb(packed)])
            features = self.scorer.encode(pictures, (truth.shape[0], truth.shape[1]))
            score_map = self.scorer.score(features, bank)
            options = {"stride": self.stride, "void": self.void}
            total.append(score_map_loss(score_map, truth[None], gamma=self.gamma, **options))
        return {"loss": torch.stack(total).mean()}

    def _classes_of_step(self, labels: Iterable[Tensor]) -> tuple[Vocabulary, list[Tensor]]:
        """The classes that compete, and the labels as numbers of them."""
        labels = list(labels)
        everything = self.train_vocabulary
        if self.classes_per_step is None or self.classes_per_step >= len(everything):
            return everything, labels
        present = torch.cat([each.flatten() for each in labels]).unique()
        chosen = present[present != self.void].cpu()
        others = torch.randperm(len(everything))
        others = others[~torch.isin(others, chosen)][: max(self.classes_per_step - len(chosen), 0)]
        chosen = torch.cat([chosen, others]).sort().values
        number = torch.full((self.void + 1,), self.void)
        number[chosen] = torch.arange(len(chosen))
        some = Vocabulary(tuple(everything.classes[k] for k in chosen.tolist()), shared_prompts=True)
        return some, [number[each.long().cpu()] for each in labels]

    def predictor(self) -> PromptedInferencer:
        """The method with what was trained, for any words."""
        self.prompted.source = dict(self.provenance)
        return self.prompted
