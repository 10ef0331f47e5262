"""DenseCLIP: words that have seen the image, compared with every pixel, guide an ordinary dense decoder.

Learned context vectors stand between the start token and the class name; the frozen text tower encodes them.
*Post-model* prompting then lets each word look at the image, `t <- t + gamma * D(t, image)`; *pre-model*
prompting lets the context vectors look at it, before the text tower reads them. The cosine of words and dense
features is the score map; it is appended to one level of the image's pyramid, which goes on to the decoder,
and it has a loss of its own (`ovseg.training.denseclip_losses`).

Source: Rao et al., arXiv 2112.01518, sections 3.2 and 3.3; github.com/raoyongming/DenseCLIP at 5eda47f0,
segmentation/denseclip/denseclip.py, detection/denseclip/denseclip.py, models.py (CLIPTextContextEncoder).
Parameters are named as there. Deviations: names may be as long as the text tower's context allows (published:
5 tokens with start and end, for any longer an error). Pre-model prompting is from the paper alone; the
authors' code has post-model prompting only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ovseg.encoders.pyramid import PyramidFeatures
from ovseg.errors import ConfigError, VocabularyError
from ovseg.methods.anomalyclip import encode_embedded
from ovseg.text.tokens import count_tokens, tokenize
from ovseg.text.towers import ClipText
from ovseg.training.context_decoder import ContextDecoder


def name_tokens(
    tokenizer: Any, names: Sequence[str], *, context_length: int, contexts: int
) -> Int[Tensor, "K L"]:
    """Tokens of bare class names, as short as the longest allows.

    Args:
        tokenizer: of the CLIP.
        names: the classes.
        context_length: of the text tower.
        contexts: how many learned vectors have to fit in, too.

    Raises:
        VocabularyError: a name is too long.
    """
    room = context_length - contexts
    counts = [count_tokens(tokenizer, name, context_length) for name in names]
    long = [f"'{name}' ({count} tokens)" for name, count in zip(names, counts, strict=True) if count > room]
    if long or not counts:
        raise VocabularyError(
            f"class names beside {contexts} learned vectors may have {room} tokens, start and end included; "
            f"too long: {', '.join(long) or 'none, but there are no classes'}"
        )
    return tokenize(tokenizer, names, context_length)[:, : max(counts)].long()


def encode_prompted(
    text: ClipText, tokens: Int[Tensor, "K L"], contexts: Float[Tensor, "A n C"]
) -> Float[Tensor, "A K D"]:
    """Names with context vectors behind the start token, encoded; not normalised.

    Args:
        text: the frozen text tower; gradients pass through it to the contexts.
        tokens: of the names.
        contexts: one set for all images (A = 1), or one for each.
    """
    words = text.token_embedding(tokens)
    sets = len(contexts)
    words = words.expand(sets, *words.shape)
    inserted = contexts[:, None].expand(-1, len(tokens), -1, -1).to(words.dtype)
    prompts = torch.cat([words[:, :, :1], inserted, words[:, :, 1:]], dim=2).flatten(0, 1)
    ends = (text.lengths(tokens).to(tokens.device) - 1 + contexts.shape[1]).repeat(sets)
    return encode_embedded(text, prompts, ends).unflatten(0, (sets, -1))


@dataclass(frozen=True)
class PixelText:
    """Pixels compared with words.

    Attributes:
        levels: the pyramid, with the score map appended to one level: what a neck takes.
        cosine: the score map, in [-1, 1].
        words: the words as the image has changed them, unit length.
        features: the pyramid as the tower gave it.
    """

    levels: tuple[Float[Tensor, "B _ _ _"], ...]
    cosine: Float[Tensor, "B K h w"]
    words: Float[Tensor, "B K D"]
    features: PyramidFeatures


class PixelTextMatching(nn.Module):
    """Everything of DenseCLIP between the image tower and the decoder.

    Args:
        text_width: of the text tower.
        joint_dim: of the shared space, D.
        prompting: "post" or "pre", see above.
        contexts: number of learned context vectors (pre: of learned queries).
        context_std: of their initial values. Published: 1;
            token embeddings have about 0.02.
        temperature: logit scale of the losses; published as a divisor of 0.07.
        appended: what goes to the decoder: "cosine" (published for segmentation) or "logits", the cosine
            times the temperature (published for detection).
        gamma: initial share of what the image adds to a word.
        decoder: options of `ContextDecoder`.

    Raises:
        ConfigError: no such prompting or appended map.
    """

    def __init__(
        self,
        text_width: int,
        joint_dim: int,
        *,
        prompting: str = "post",
        contexts: int = 8,
        context_std: float = 0.02,
        temperature: float = 1 / 0.07,
        appended: str = "cosine",
        gamma: float = 1e-4,
        decoder: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if prompting not in ("post", "pre") or appended not in ("cosine", "logits"):
            raise ConfigError(
                f"prompting must be 'post' or 'pre' and appended 'cosine' or 'logits', got '{prompting}' and "
                f"'{appended}'"
            )
        self.prompting = prompting
        self.temperature = temperature
        self.appended = appended
        self.contexts = nn.Parameter(torch.empty(1, contexts, text_width))
        nn.init.trunc_normal_(self.contexts, std=context_std, a=-2 * context_std, b=2 * context_std)
        self.context_decoder = ContextDecoder(
            joint_dim if prompting == "post" else text_width, joint_dim, **(decoder or {})
        )
        if prompting == "post":
            self.gamma = nn.Parameter(torch.full((joint_dim,), gamma))

    def encode(self, text: ClipText, tokens: Int[Tensor, "K L"]) -> Float[Tensor, "1 K D"] | None:
        """Words before they see an image, once for all images; None where prompting is pre-model."""
        return encode_prompted(text, tokens, self.contexts) if self.prompting == "post" else None

    def words(
        self,
        features: PyramidFeatures,
        text: ClipText,
        tokens: Int[Tensor, "K L"],
        encoded: Float[Tensor, "1 K D"] | None = None,
    ) -> Float[Tensor, "B K D"]:
        """Words that have seen the images, not normalised.

        Args:
            features: of the images.
            text: the frozen text tower.
            tokens: of the class names.
            encoded: what `encode` gave, where it is known already.
        """
        visual = features.context
        if self.prompting == "pre":
            queries = self.contexts.expand(len(visual), -1, -1)
            return encode_prompted(text, tokens, self.context_decoder(queries, visual))
        unseen = encode_prompted(text, tokens, self.contexts) if encoded is None else encoded
        unseen = unseen.to(visual.dtype).expand(len(visual), -1, -1)
        return unseen + self.gamma * self.context_decoder(unseen, visual)

    def forward(
        self,
        features: PyramidFeatures,
        text: ClipText,
        tokens: Int[Tensor, "K L"],
        *,
        dense_level: int,
        encoded: Float[Tensor, "1 K D"] | None = None,
    ) -> PixelText:
        """Compares images with words.

        Args:
            features, text, tokens, encoded: see `words`.
            dense_level: the level that the score map is appended to; it has the dense features' grid.
        """
        words = F.normalize(self.words(features, text, tokens, encoded), dim=-1)
        cosine = torch.einsum("bdhw,bkd->bkhw", F.normalize(features.grid, dim=1), words)
        levels = list(features.levels)
        map_ = cosine if self.appended == "cosine" else cosine * self.temperature
        levels[dense_level] = torch.cat([levels[dense_level], map_], dim=1)
        return PixelText(tuple(levels), cosine, words, features)
