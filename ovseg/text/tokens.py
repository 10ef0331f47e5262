"""Prompts to tokens, without cutting any of them in silence as the tokenizers themselves do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def tokenize(tokenizer: Any, texts: Sequence[str], context_length: int) -> Int[Tensor, "N L"]:
    """Tokens of each text, padded, and cut where too long: `may_be_cut` tells which to look at."""
    return tokenizer(list(texts), context_length=context_length)


def may_be_cut(tokenizer: Any, tokens: Int[Tensor, "N L"]) -> Bool[Tensor, " N"]:
    """Rows that fill the context, so that something may be missing: their ends are not padding.

    Two tokens are compared, since some tokenizers put a class token last.
    """
    padding = tokenizer([""], context_length=tokens.shape[1])[0, -2:]
    return (tokens[:, -2:] != padding).any(dim=1)


def count_tokens(tokenizer: Any, text: str, context_length: int) -> int:
    """Tokens of a text of any length, with those that mark its start and end.

    open_clip's `SimpleTokenizer` has `encode`; its Hugging Face wrappers carry the tokenizer itself. For
    any other, the text is tokenised with ever more room until it no longer fills it.
    """
    if hasattr(tokenizer, "encode"):
        return len(tokenizer.encode(text)) + 2
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is not None and callable(inner):
        clean = getattr(tokenizer, "clean_fn", str)
        if getattr(tokenizer, "tokenizer_mode", "") == "clips":  # start, end and class tokens come on top
            return len(inner(clean(text), add_special_tokens=False, truncation=False).input_ids) + 3
        return len(inner(clean(text), truncation=False).input_ids)
    room = 2 * context_length
    tokens = tokenize(tokenizer, [text], room)
    while bool(may_be_cut(tokenizer, tokens)) and room < 2**16:
        room *= 2
        tokens = tokenize(tokenizer, [text], room)
    empty = tokenize(tokenizer, [""], room)
    return int(torch.nonzero(tokens[0] != empty[0, -1])[-1]) + 1
