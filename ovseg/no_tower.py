"""CLIPN's second text tower, which says of words that they are not shown.

Source: Wang et al., "CLIPN for Zero-Shot OOD Detection: Teaching CLIP to Say No", ICCV 2023;
xmed-lab/CLIPN at e465074b5f (`src`: learned tokens, the released weights; `hand-crafted`: sentences that say
"no").
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ovseg.encoders.checkpoints import load_into, load_state_dict, sha256_of
from ovseg.errors import CheckpointError, ConfigError, VocabularyError
from ovseg.structures import TextBank
from ovseg.text.encoder import TextEncoder
from ovseg.text.templates import TemplateSpec, load_templates
from ovseg.text.towers import ClipText
from ovseg.text.vocabulary import Vocabulary

#: Where a sentence turns into its opposite: the word before the thing, from a few before the `{}` on.
_ARTICLE = re.compile(r"\b(?:a|an|the|my|one)\s+(?=(?:\w+\s+)?\{\})")
#: Weights of one tower that differ by more than this, relative to their size, are not of the same training.
_ROUNDING = 1e-2


@dataclass(frozen=True)
class NoTower:
    """Words to unit vectors of their absence.

    Attributes:
        encoder: the second text tower.
        spelled: whether it reads sentences that say "no" themselves; else it reads the ordinary ones.
        weights_sha256: of the file.
    """

    encoder: TextEncoder
    spelled: bool
    weights_sha256: str

    def attach(
        self, bank: TextBank, vocabulary: Vocabulary, templates: TemplateSpec = "imagenet80", **given: Any
    ) -> TextBank:
        """The bank with `no`.

        Args:
            bank: of these words.
            vocabulary: the words.
            templates: as for the bank.
            given: see `TextEncoder.bank`.

        Raises:
            VocabularyError: a description is to be said in the negative, which only the learned tower can.
        """
        sentences: Sequence[str] = load_templates(templates)
        if self.spelled:
            if any(query.is_description for query in vocabulary.queries):
                raise VocabularyError(
                    "this 'no' tower reads sentences that say 'no', and a description has no such form: "
                    "use plain names, or CLIPN's weights with learned 'no' tokens"
                )
            sentences = [negated(each) for each in sentences]
        return replace(bank, no=self.encoder.bank(vocabulary, sentences, **given).embeddings)


def negated(template: str) -> str:
    """A template that says the opposite, as the hand-crafted variant of CLIPN does.

    "a photo of a {}." becomes "a photo of no {}.", "a photo with a {}." "a photo without a {}.".
    *Deviation*: the two sentences of the published list that begin with their thing are worded otherwise.
    """
    if re.search(r"\bwith\b", template):
        return re.sub(r"\bwith\b", "without", template, count=1)
    changed = _ARTICLE.sub("no ", template, count=1)
    return changed if changed != template else template.replace("{}", "no {}", 1)


def load_no_tower(path: str | Path, text: TextEncoder) -> NoTower:
    """The second tower of a CLIPN checkpoint, for a CLIP that is loaded.

    Args:
        path: as the authors' training writes it: names that end in `_no`, beside those of the whole CLIP.
        text: the first tower, of which the second has the form.

    Raises:
        CheckpointError: no such file, or none of CLIPN, or of another size.
        ConfigError: the second tower was trained beside another CLIP, or the encoder is no CLIP.
    """
    source = Path(path)
    if not isinstance(text.text, ClipText):
        raise ConfigError("a 'no' tower goes with a CLIP, and this encoder reads words otherwise")
    state = load_state_dict(source)
    second = _second(state)
    if not second:
        raise CheckpointError(
            f"{source} holds no 'no' tower: expected the weights of CLIPN, with names such as "
            f"transformer_no.resblocks.0.ln_1.weight and text_projection_no"
        )
    _check_same_clip(state, text.text, source)
    learned = second.pop("prompt", None)
    if learned is not None and "positional_embedding" in second:  # added to tokens at every place alike
        second["positional_embedding"] = second["positional_embedding"].float() + learned.float().mean(dim=0)
    tower = copy.deepcopy(text.text)
    load_into(tower, second, source=str(source), architecture="the encoder's text tower")
    tower.eval().requires_grad_(False)
    sha256 = sha256_of(source)
    encoder = TextEncoder(
        tower, text.tokenizer, context_length=text.context_length, weights_id=f"{sha256}/no"
    ).to(text.device)
    return NoTower(encoder, spelled=learned is None, weights_sha256=sha256)


def _second(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`transformer_no.x` as `transformer.x`, and so on."""
    found = {}
    for name, value in state.items():
        first, dot, rest = name.partition(".")
        if first.endswith("_no"):
            found[first.removesuffix("_no") + dot + rest] = value
    return found


def _check_same_clip(state: Mapping[str, Tensor], text: nn.Module, source: Path) -> None:
    """Raises ConfigError where the file's own first tower is not the loaded one."""
    own = dict(text.named_parameters()).get("text_projection")
    theirs = state.get("text_projection")
    if own is None or theirs is None:
        return
    ours = own.detach().cpu().float()
    if ours.shape == theirs.shape and torch.dist(ours, theirs.float()) <= _ROUNDING * ours.norm():
        return
    raise ConfigError(
        f"the 'no' tower of {source} was trained beside another CLIP than the encoder: name that one "
        f"(CLIPN's release: --encoder clip_vitb16_laion2b or clip_vitb32_laion2b)"
    )
