"""Words for things in order and out of order: states times templates, and the two-class bank they make.

Sources: WinCLIP's compositional prompts, Jeong et al., arXiv 2303.14814, section 4.1 and its appendix (states
and templates as lists); AnoVL's contrastive states and domain words, arXiv 2308.15939,
github.com/hq-deng/AnoVL at 3a70bfda, prompt_ensemble.py.
Deviations: none in the published sets. "generic" is ours: for things whose name nobody knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovseg.anomaly_structures import StateBank
from ovseg.errors import VocabularyError, unknown_name
from ovseg.structures import TextBank
from ovseg.text.encoder import OnLong, TextEncoder
from ovseg.text.templates import fill, load_templates
from ovseg.text.tokens import count_tokens, may_be_cut, tokenize

_LOOKS = ("cropped", "close-up", "bright", "dark", "jpeg corrupted", "blurry")
_SIZES = ("", "small ", "large ")
_PURPOSES = ("for visual inspection", "for anomaly detection")
_LACKS = ("{} without flaw", "{} without defect", "{} without damage")
_HAS = ("{} with flaw", "{} with defect", "{} with damage")


def inspection_templates(medium: str = "photo") -> tuple[str, ...]:
    """WinCLIP's 22 templates for a medium: a look, a size or a purpose, each with "a" and with "the"."""
    alone = f"an {medium}" if medium[0] in "aeiou" else f"a {medium}"
    return (
        *(f"a {look} {medium} of {article} {{}}" for look in _LOOKS for article in ("a", "the")),
        *(f"{alone} of {article} {size}{{}}" for size in _SIZES for article in ("a", "the")),
        *(f"{alone} of {article} {{}} {purpose}" for purpose in _PURPOSES for article in ("a", "the")),
    )


@dataclass(frozen=True)
class StatePrompts:
    """What to say of a thing in order and of one out of order.

    Attributes:
        normal, abnormal: states, each with one `{}` for the name.
        templates: sentences, each with one `{}` for the name in its state.

    Raises:
        VocabularyError: a list is empty, or an entry has no `{}`, more than one, or comes twice.
    """

    normal: tuple[str, ...]
    abnormal: tuple[str, ...]
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        for each in (self.normal, self.abnormal, self.templates):
            load_templates(each)

    def sentences(self, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """All sentences about a thing: normal ones, abnormal ones; templates outermost.

        Args:
            name: what it is, without article ("metal nut").

        Raises:
            VocabularyError: the name is empty.
        """
        name = " ".join(name.replace("_", " ").split())
        if not name:
            raise VocabularyError(
                'the name of the inspected thing is empty; where it is unknown, say "object"'
            )
        normal, abnormal = (
            tuple(fill(template, fill(state, name)) for template in self.templates for state in states)
            for states in (self.normal, self.abnormal)
        )
        return normal, abnormal


def _anovl(*media: str) -> StatePrompts:
    return StatePrompts(
        ("normal {}", "flawless {}", "perfect {}", "unblemished {}", *_LACKS),
        ("damaged {}", "abnormal {}", "imperfect {}", "blemished {}", *_HAS),
        tuple(template for medium in media for template in inspection_templates(medium)),
    )


#: State prompts by name.
STATE_PROMPTS = {
    "winclip": StatePrompts(
        ("{}", "flawless {}", "perfect {}", "unblemished {}", *_LACKS),
        ("damaged {}", *_HAS),
        inspection_templates(),
    ),
    "anovl": _anovl("industrial photo", "industrial image", "manufacturing image"),
    "anovl_texture": _anovl("industrial photo", "textural photo", "surface picture"),
    "generic": StatePrompts(
        ("{}", "normal {}", "intact {}", "clean {}", "complete {}", *_LACKS),
        ("damaged {}", "broken {}", "dirty {}", "scratched {}", "deformed {}", "{} with a hole",
         "{} with a stain", "{} with a missing part", *_HAS),
        ("a photo of a {}", "a photo of the {}", "a close-up photo of a {}", "a close-up photo of the {}"),
    ),
}  # fmt: skip


def state_bank(
    encoder: TextEncoder,
    name: str = "object",
    prompts: StatePrompts | str = "winclip",
    *,
    batch_size: int = 256,
    on_long: OnLong = "error",
) -> StateBank:
    """The two states of a thing, encoded.

    A state is the mean of its sentences' embeddings *as the text tower gives them*, brought to length 1; long
    vectors count more than short ones, unlike in `TextEncoder.bank`.

    Args:
        encoder: the text tower.
        name: what is inspected.
        prompts: a name of `STATE_PROMPTS`, or your own.
        batch_size: sentences at a time.
        on_long: a sentence longer than the context is an "error", or cut ("truncate").

    Returns:
        The bank, float32, on the encoder's device.

    Raises:
        ConfigError: an unknown name of prompts.
        VocabularyError: a sentence is too long, or the name is empty.
    """
    if isinstance(prompts, str):
        if prompts not in STATE_PROMPTS:
            raise unknown_name("set of state prompts", prompts, STATE_PROMPTS)
        prompts = STATE_PROMPTS[prompts]
    raw = [_embed(encoder, each, batch_size, on_long) for each in prompts.sentences(name)]
    states = torch.stack([each.mean(dim=0) for each in raw])
    return StateBank(F.normalize(states, dim=-1), F.normalize(torch.cat(raw), dim=-1))


def anomaly_bank(
    encoder: TextEncoder,
    objects: Sequence[str] = ("object",),
    prompts: StatePrompts | str = "generic",
    *,
    on_long: OnLong = "error",
) -> TextBank:
    """Things in order and out of order as two classes, for the score map of any method.

    Args:
        encoder: the text tower.
        objects: what is inspected; each name is a query of either class.
        prompts, on_long: see `state_bank`.

    Returns:
        A bank of the classes normal and abnormal, in this order.

    Raises:
        ConfigError: an unknown name of prompts.
        VocabularyError: no object, an empty name, or a sentence that is too long.
    """
    if not objects:
        raise VocabularyError('an anomaly bank needs at least one object; where it is unknown, say "object"')
    states = torch.cat([state_bank(encoder, name, prompts, on_long=on_long).states for name in objects])
    classes = torch.arange(len(states), device=states.device) % 2
    return TextBank(states, classes, ("normal", "abnormal"))


@torch.no_grad()
def _embed(
    encoder: TextEncoder, sentences: Sequence[str], batch_size: int, on_long: OnLong
) -> Float[Tensor, "N D"]:
    """Embeddings as they come, float32."""
    tokens = tokenize(encoder.tokenizer, sentences, encoder.context_length)
    for row in may_be_cut(encoder.tokenizer, tokens).nonzero()[:, 0].tolist():
        count = count_tokens(encoder.tokenizer, sentences[row], encoder.context_length)
        if on_long == "error" and count > encoder.context_length:
            raise VocabularyError(
                f"'{sentences[row]}' has {count} tokens, the model's context {encoder.context_length}: "
                f"shorten the name, use shorter templates, or allow truncation"
            )
    tokens = tokens[:, : int(encoder.text.lengths(tokens).max())].long()
    parts = [encoder.text(part.to(encoder.device)).float() for part in tokens.split(batch_size)]
    return torch.cat(parts)
