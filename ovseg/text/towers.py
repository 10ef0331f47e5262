"""The text side of open_clip's models, without the image tower."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from ovseg.errors import CheckpointError


class ClipText(nn.Module):
    """The text side of open_clip's `CLIP`, whose parts are attributes of the model itself.

    The parts are the model's own, not copies: moving one moves the other.

    Args:
        model: `open_clip.model.CLIP`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.token_embedding = model.token_embedding
        self.positional_embedding = model.positional_embedding
        self.transformer: Any = model.transformer
        self.ln_final = model.ln_final
        self.text_projection = model.text_projection
        self.attn_mask: Tensor | None
        self.register_buffer("attn_mask", model.attn_mask, persistent=False)
        self.pool_type = model.text_pool_type
        self.eos_id: Any = getattr(model, "text_eos_id", None)

    def lengths(self, tokens: Int[Tensor, "B L"]) -> Int[Tensor, " B"]:
        """How many leading tokens of each row its embedding depends on.

        Pooling reads the end token, and attention is causal: the padding behind it changes nothing.
        """
        if self.attn_mask is not None and self.pool_type == "argmax":
            return tokens.argmax(dim=1) + 1
        if self.attn_mask is not None and self.pool_type == "eos":
            return tokens.eq(self.eos_id).int().argmax(dim=1) + 1
        return torch.full((len(tokens),), tokens.shape[1])

    def forward(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """Embeddings in the shared image-text space, not normalised; L may be below the context length."""
        length = tokens.shape[1]
        dtype = self.transformer.get_cast_dtype()
        x = self.token_embedding(tokens).to(dtype) + self.positional_embedding[:length].to(dtype)
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        x = self.ln_final(self.transformer(x, attn_mask=mask))
        x = text_global_pool(x, tokens, self.pool_type, eos_token_id=self.eos_id)
        if self.text_projection is None:
            return x
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(x)
        return x @ self.text_projection


class OtherText(nn.Module):
    """Any other open_clip model without its image tower: `CustomTextCLIP`, CoCa.

    Args:
        model: anything with `encode_text`, and an image tower called `visual`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = copy.copy(model)  # shallow: shares every parameter
        dropped = ("visual", "text_decoder")
        self.model._modules = {key: each for key, each in model._modules.items() if key not in dropped}

    def lengths(self, tokens: Int[Tensor, "B L"]) -> Int[Tensor, " B"]:
        """Every token may matter: SigLIP pools the last one and attends to padding."""
        return torch.full((len(tokens),), tokens.shape[1])

    def forward(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B D"]:
        """Embeddings in the shared image-text space, not normalised."""
        return self.model.encode_text(tokens)


def take_text_side(model: nn.Module) -> ClipText | OtherText:
    """The text side of an open_clip model.

    Raises:
        CheckpointError: it has none.
    """
    if isinstance(model, ClipText | OtherText):
        return model
    if hasattr(model, "token_embedding") and hasattr(model, "text_pool_type"):
        return ClipText(model)
    if hasattr(model, "encode_text"):
        return OtherText(model)
    raise CheckpointError(
        f"{type(model).__name__} has no text side: a model with `encode_text` is needed, as "
        "open_clip.create_model makes them"
    )
