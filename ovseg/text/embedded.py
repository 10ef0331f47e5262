"""Prompts of which some tokens are learned vectors, through CLIP's text tower block by block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ovseg.errors import CheckpointError, ShapeError
from ovseg.text.towers import ClipText, OtherText


def check_text(text: ClipText | OtherText) -> ClipText:
    """The text tower, where learned vectors can be put into it.

    Raises:
        CheckpointError: not CLIP's causal text tower that is read at its end token.
    """
    if (
        not isinstance(text, ClipText)
        or text.attn_mask is None
        or not isinstance(text.text_projection, nn.Parameter)
    ):
        raise CheckpointError("learned prompts need CLIP's own text tower: causal, pooled at the end token")
    return text


def encode_embedded(
    text: ClipText | OtherText,
    prompts: Float[Tensor, "B L C"],
    ends: Int[Tensor, " B"],
    deep: Sequence[Float[Tensor, "n C"]] = (),
) -> Float[Tensor, "B D"]:
    """Prompts that are embedded already, encoded; not normalised.

    Args:
        text: the text tower.
        prompts: token embeddings without positions; what follows a prompt's end does not matter.
        ends: where the end token of each is.
        deep: tokens that overwrite those behind the start token before the second block, the third ...

    Raises:
        CheckpointError: see `check_text`.
        ShapeError: the prompts are longer than the context, or of another width.
    """
    tower = check_text(text)
    length, width = int(ends.max()) + 1, prompts.shape[-1]
    most, own_width = tower.positional_embedding.shape
    if length > most or width != own_width:
        raise ShapeError(
            f"prompts have {length} tokens of width {width}, the text tower takes {most} of {own_width}: "
            f"use the text tower they were trained for"
        )
    tokens = prompts[:, :length].to(tower.positional_embedding.dtype) + tower.positional_embedding[:length]
    assert tower.attn_mask is not None
    mask = tower.attn_mask[:length, :length]
    for index, block in enumerate(tower.transformer.resblocks):
        if 1 <= index <= len(deep):
            inserted = deep[index - 1].to(tokens.dtype).expand(len(tokens), -1, -1)
            tokens = torch.cat([tokens[:, :1], inserted, tokens[:, 1 + inserted.shape[1] :]], dim=1)
        tokens = block(tokens, attn_mask=mask)
    last = tokens[torch.arange(len(tokens), device=tokens.device), ends]
    return tower.ln_final(last) @ tower.text_projection
