"""The encoder that turns a vocabulary into a `TextBank`."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from ovseg.errors import VocabularyError
from ovseg.structures import TextBank
from ovseg.text.cache import FORMAT, EmbeddingCache, content_hash, default_cache_dir
from ovseg.text.templates import TemplateSpec, fill, load_templates
from ovseg.text.tokens import count_tokens, may_be_cut, tokenize
from ovseg.text.towers import take_text_side
from ovseg.text.vocabulary import Vocabulary

#: Prompts per step, which bounds memory and the steps of the progress bar.
GROUP_PROMPTS = 4096
#: Its tokens tell tokenizers of different vocabularies and cleaning rules apart.
PROBE = "A photo of DÉJÀ-vu: 42 x_y's {cats}!"

OnLong = Literal["error", "truncate"]
log = logging.getLogger(__name__)


class _Work(NamedTuple):
    """A query that has to be encoded, and the sentences that it is the mean of."""

    key: str
    text: str
    sentences: tuple[str, ...]


class _Batch(NamedTuple):
    """Queries whose sentences are tokenised; rows of `tokens` follow the sentences."""

    work: list[_Work]
    tokens: Int[Tensor, "N L"]
    lengths: Int[Tensor, " N"]
    too_long: list[int]


class TextEncoder(nn.Module):
    """Words to unit vectors in the space of the image features.

    Args:
        model: an open_clip model; its text side is used as it is, its image tower is not kept.
        tokenizer: what `open_clip.get_tokenizer` gives for it.
        context_length: tokens per prompt, with those that mark its start and end.
        weights_id: what the weights are, for the cache ("ViT-B-16/openai", a sha256). The cache also
            samples the weights themselves, so that an id used twice does no harm.

    Raises:
        CheckpointError: the model has no text side.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, *, context_length: int, weights_id: str) -> None:
        super().__init__()
        self.text = take_text_side(model).eval()
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.weights_id = weights_id

    @classmethod
    def of(cls, loaded: Any) -> TextEncoder:
        """The text side of what `ovseg.encoders.clip_loading.load_clip` gives."""
        return cls(
            loaded.model,
            loaded.tokenizer,
            context_length=loaded.context_length,
            weights_id=loaded.weights_sha256,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def encode(
        self, sentences: Sequence[str], *, batch_size: int = 256, on_long: OnLong = "error"
    ) -> Float[Tensor, "N D"]:
        """Unit vectors of sentences as they stand, float32, on the encoder's device. See `bank`."""
        batches = self._tokenize([_Work("", each, (each,)) for each in sentences], on_long)
        return torch.cat([self._embed(batch, batch_size) for batch in batches])

    def bank(
        self,
        vocabulary: Vocabulary,
        templates: TemplateSpec = "imagenet80",
        *,
        batch_size: int = 256,
        cache_dir: Path | str | Literal[False] | None = None,
        on_long: OnLong = "error",
    ) -> TextBank:
        """The words of a vocabulary, encoded.

        A query is put into every template; the sentences are encoded and brought to length 1, averaged,
        and the mean is brought to length 1 (CLIP, Radford et al. 2021, section 3.1.4, and all methods of
        the SCLIP family). Descriptions are encoded as they stand.

        Args:
            vocabulary: the classes.
            templates: see `load_templates`.
            batch_size: sentences at a time; changes speed and memory only.
            cache_dir: folder for embeddings; None is the default (`default_cache_dir`), False none.
            on_long: a prompt longer than the context is an "error", or is cut with a logged warning
                ("truncate").

        Returns:
            The bank, float32, on the encoder's device.

        Raises:
            VocabularyError: a prompt is too long, or the templates are unusable.
        """
        checked = load_templates(templates)
        queries = vocabulary.queries
        folder = None if cache_dir is False else Path(cache_dir) if cache_dir else default_cache_dir()
        cache = EmbeddingCache(folder, self._setting(checked))
        keys = [content_hash([query.text, query.is_description]) for query in queries]
        vectors = cache.load()
        missing = {
            key: _Work(
                key, query.text, (query.text,) if query.is_description else _fill_all(checked, query.text)
            )
            for key, query in zip(keys, queries, strict=True)
            if key not in vectors
        }
        vectors.update(self._encode_missing(list(missing.values()), cache, batch_size, on_long))
        return TextBank(
            embeddings=torch.stack([vectors[key].to(self.device) for key in keys]),
            class_of_query=torch.tensor([query.class_index for query in queries], device=self.device),
            names=vocabulary.names,
            background=vocabulary.background,
            thresholds=vocabulary.thresholds,
            prototypes=vocabulary.prototypes,
        )

    def _encode_missing(
        self, work: list[_Work], cache: EmbeddingCache, batch_size: int, on_long: OnLong
    ) -> dict[str, Tensor]:
        """Vectors by key. Those done by the time of an error or an interrupt are cached all the same."""
        batches = self._tokenize(work, on_long)  # everything, so that a long prompt is found at once
        found: dict[str, Tensor] = {}
        cut: set[str] = set()
        quiet = not sys.stderr.isatty()
        try:
            with tqdm(total=len(work), desc="text", unit="query", delay=2, disable=quiet, leave=False) as bar:
                for batch in batches:
                    rows = self._embed(batch, batch_size).split([len(item.sentences) for item in batch.work])
                    for item, own in zip(batch.work, rows, strict=True):
                        found[item.key] = F.normalize(own.mean(dim=0), dim=0)
                    cut.update(batch.work[index].key for index in batch.too_long)
                    bar.update(len(batch.work))
        finally:
            # a cut prompt is not cached: it is to be reported again the next time
            cache.add({key: vector for key, vector in found.items() if key not in cut})
        return found

    @torch.no_grad()
    def _embed(self, batch: _Batch, batch_size: int) -> Float[Tensor, "N D"]:
        """A unit vector per sentence; those of like length are encoded together, without spare padding."""
        order = batch.lengths.argsort()
        parts = []
        for chosen in order.split(batch_size):
            tokens = batch.tokens[chosen, : int(batch.lengths[chosen].max())]
            parts.append(F.normalize(self.text(tokens.long().to(self.device)).float(), dim=-1))
        return torch.cat(parts)[order.argsort().to(self.device)]

    def _tokenize(self, work: list[_Work], on_long: OnLong) -> list[_Batch]:
        """Tokens of all sentences, after a look at their lengths."""
        batches = [self._tokenize_group(group) for group in _groups(work)]
        long = [batch.work[index] for batch in batches for index in batch.too_long]
        if long:
            message = self._describe_long(long)
            if on_long == "error":
                raise VocabularyError(
                    f"{message} Shorten them, use shorter templates, or allow truncation (--truncate)."
                )
            log.warning("%s Their ends are cut off.", message)
        return batches

    def _tokenize_group(self, work: list[_Work]) -> _Batch:
        sentences = [each for item in work for each in item.sentences]
        tokens = tokenize(self.tokenizer, sentences, self.context_length)
        suspects = {sentences[row] for row in may_be_cut(self.tokenizer, tokens).nonzero()[:, 0].tolist()}
        long = {each for each in suspects if self._count(each) > self.context_length}
        too_long = [index for index, item in enumerate(work) if long.intersection(item.sentences)]
        lengths = self.text.lengths(tokens)
        return _Batch(work, tokens[:, : int(lengths.max())].to(torch.int32), lengths, too_long)

    def _count(self, sentence: str) -> int:
        return count_tokens(self.tokenizer, sentence, self.context_length)

    def _describe_long(self, work: Sequence[_Work], shown: int = 5) -> str:
        """Which prompts are too long, alone or in which template, and by how much."""
        lines = []
        for item in work[:shown]:
            alone = self._count(item.text)
            count, sentence = max((self._count(each), each) for each in item.sentences)
            place = "" if alone > self.context_length else f", {count} as '{sentence}'"
            lines.append(f"'{item.text}' ({alone} tokens{place})")
        more = f" and {len(work) - shown} more" if len(work) > shown else ""
        return (
            f"{len(work)} of the prompts do not fit the model's context of {self.context_length} tokens "
            f"(start and end included): {', '.join(lines)}{more}."
        )

    def _setting(self, templates: tuple[str, ...]) -> str:
        """Hash of all that an embedding depends on, apart from its query."""
        probe = tokenize(self.tokenizer, [PROBE], self.context_length)[0].tolist()
        return content_hash([FORMAT, self.weights_id, self._weights_sample(), probe, list(templates)])

    @torch.no_grad()
    def _weights_sample(self) -> str:
        """Hash of names, shapes, types and a few values of every parameter."""
        named = sorted(self.text.named_parameters())
        shapes = [[name, list(each.shape), str(each.dtype)] for name, each in named]
        values = [each.flatten()[:: max(each.numel() // 64, 1)].float() for _, each in named]
        return content_hash([shapes, hashlib.sha256(torch.cat(values).cpu().numpy().tobytes()).hexdigest()])


def _fill_all(templates: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(fill(each, name) for each in templates)


def _groups(work: list[_Work]) -> Iterator[list[_Work]]:
    """Whole queries, in order, of about `GROUP_PROMPTS` sentences together."""
    group: list[_Work] = []
    size = 0
    for item in work:
        if group and size + len(item.sentences) > GROUP_PROMPTS:
            yield group
            group, size = [], 0
        group.append(item)
        size += len(item.sentences)
    if group:
        yield group
