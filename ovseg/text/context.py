"""CoOp's learned context: vectors in the place of "a photo of a", before any name.

Source: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv 2109.01134), section
3.2; github.com/KaiyangZhou/CoOp at ff61507c, trainers/coop.py.
Deviations: the name stands at the end, the first of CoOp's three places. With contexts of their own for each
class, a name that was not trained takes their mean, where CoOp has no answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.errors import ConfigError, ShapeError, VocabularyError
from ovseg.structures import TextBank
from ovseg.text.class_files import fold
from ovseg.text.embedded import check_text, encode_embedded
from ovseg.text.encoder import TextEncoder
from ovseg.text.tokens import count_tokens, tokenize
from ovseg.text.vocabulary import Vocabulary

INIT_STD = 0.02


class LearnedContext(nn.Module):
    """Vectors before each name: the same for all names ("unified"), or each class its own.

    Args:
        width: of the text tower.
        length: vectors; CoOp takes 16, or as many as `init` has tokens.
        classes: the classes that have their own; () for the same of all.
        init: embeddings of words to begin with; None begins with random ones.
    """

    def __init__(
        self,
        width: int,
        *,
        length: int = 16,
        classes: Sequence[str] = (),
        init: Float[Tensor, "M C"] | None = None,
    ) -> None:
        super().__init__()
        if length < 1:
            raise ConfigError(f"a context has at least one vector, got length {length}")
        start = torch.randn(length, width) * INIT_STD if init is None else init.detach().clone()
        self.classes = tuple(classes)
        self.vectors = nn.Parameter(start.expand(len(classes), -1, -1).clone() if classes else start[None])

    @classmethod
    def from_words(cls, encoder: TextEncoder, words: str, *, classes: Sequence[str] = ()) -> LearnedContext:
        """A context that begins as words, such as "a photo of a".

        Raises:
            ConfigError: no words.
            CheckpointError: see `ovseg.text.embedded.check_text`.
        """
        text = check_text(encoder.text)
        number = count_tokens(encoder.tokenizer, words, encoder.context_length) - 2
        if number < 1:
            raise ConfigError("a context that begins as words needs some, such as 'a photo of a'")
        tokens = tokenize(encoder.tokenizer, [words], encoder.context_length).long().to(encoder.device)
        init = text.token_embedding(tokens)[0, 1 : 1 + number].float().cpu()
        return cls(init.shape[1], length=number, classes=classes, init=init)

    @property
    def sha256(self) -> str:
        """Of the vectors as they are."""
        return hashlib.sha256(self.vectors.detach().float().cpu().numpy().tobytes()).hexdigest()

    def forward(self, encoder: TextEncoder, vocabulary: Vocabulary) -> TextBank:
        """The words of a vocabulary after the context; with gradients, where they are on.

        Descriptions are sentences already and stay without it.

        Raises:
            VocabularyError: a name is too long for what the context leaves.
            CheckpointError: see `ovseg.text.embedded.check_text`.
            ShapeError: the context is of another text tower.
        """
        queries = vocabulary.queries
        rows: list[Tensor | None] = [None] * len(queries)
        plain = [place for place, query in enumerate(queries) if query.is_description]
        named = [place for place, query in enumerate(queries) if not query.is_description]
        if plain:
            found = encoder.encode([queries[place].text for place in plain])
            for place, row in zip(plain, found, strict=True):
                rows[place] = row
        names = [vocabulary.names[queries[place].class_index] for place in named]
        encoded = self.encode(encoder, [queries[place].text for place in named], names)
        for place, row in zip(named, encoded, strict=True):
            rows[place] = row
        return TextBank(
            embeddings=torch.stack([row for row in rows if row is not None]),
            class_of_query=torch.tensor([query.class_index for query in queries], device=encoder.device),
            names=vocabulary.names,
            background=vocabulary.background,
            thresholds=vocabulary.thresholds,
            prototypes=vocabulary.prototypes,
        )

    def encode(
        self, encoder: TextEncoder, texts: Sequence[str], names: Sequence[str]
    ) -> Float[Tensor, "N D"]:
        """Unit vectors of texts after the context of the classes `names`. See `forward`."""
        text = check_text(encoder.text)
        length, width = self.vectors.shape[1:]
        if width != text.token_embedding.embedding_dim:
            raise ShapeError(
                f"the context is {width} wide and the text tower {text.token_embedding.embedding_dim}: use "
                f"the encoder it was trained with"
            )
        sentences = [f"{each}." for each in texts]
        room = encoder.context_length - length
        for sentence in sentences:
            number = count_tokens(encoder.tokenizer, sentence, encoder.context_length)
            if number > room:
                raise VocabularyError(
                    f"'{sentence}' has {number} tokens (start and end included), and the learned context of "
                    f"{length} leaves room for {room} of {encoder.context_length}: shorten it"
                )
        tokens = tokenize(encoder.tokenizer, sentences, encoder.context_length).long().to(encoder.device)
        words = text.token_embedding(tokens)
        ends = text.lengths(tokens) - 1 + length
        context = self._of(names).to(words)
        prompts = torch.cat([words[:, :1], context, words[:, 1:]], dim=1)
        return F.normalize(encode_embedded(text, prompts, ends).float(), dim=-1)

    def _of(self, names: Sequence[str]) -> Float[Tensor, "N M C"]:
        if not self.classes:
            return self.vectors.expand(len(names), -1, -1)
        place = {fold(name): index for index, name in enumerate(self.classes)}
        every = torch.cat([self.vectors, self.vectors.mean(dim=0, keepdim=True)])
        return every[[place.get(fold(name), len(self.classes)) for name in names]]
