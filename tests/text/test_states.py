from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import tiny_clip

from ovseg.errors import ConfigError, VocabularyError
from ovseg.text.encoder import TextEncoder
from ovseg.text.states import STATE_PROMPTS, StatePrompts, inspection_templates, state_bank
from ovseg.text.tokens import tokenize


def text_encoder() -> TextEncoder:
    clip = tiny_clip()
    return TextEncoder(clip.model, clip.tokenizer, context_length=clip.context_length, weights_id="tiny")


@pytest.mark.parametrize(
    ("name", "normal", "abnormal", "templates"),
    [("winclip", 7, 4, 22), ("anovl", 7, 7, 66), ("anovl_texture", 7, 7, 66)],
)
def test_published_sets_have_their_sizes(name: str, normal: int, abnormal: int, templates: int) -> None:
    prompts = STATE_PROMPTS[name]
    assert (len(prompts.normal), len(prompts.abnormal), len(prompts.templates)) == (
        normal,
        abnormal,
        templates,
    )
    good, bad = prompts.sentences("metal_nut")
    assert len(set(good)) == normal * templates
    assert len(set(bad)) == abnormal * templates
    assert not set(good) & set(bad)


def test_sentences_read_well() -> None:
    good, bad = STATE_PROMPTS["winclip"].sentences("metal nut")
    assert "a close-up photo of the flawless metal nut" in good
    assert "a photo of a small metal nut without defect" in good
    assert "a photo of the damaged metal nut for visual inspection" in bad
    assert "an industrial photo of a metal nut with flaw" in STATE_PROMPTS["anovl"].sentences("metal nut")[1]
    assert "a dark surface picture of a normal wood" in STATE_PROMPTS["anovl_texture"].sentences("wood")[0]
    assert "a jpeg corrupted photo of a {}" in inspection_templates()


def test_bank_is_the_mean_of_raw_embeddings() -> None:
    encoder, prompts = text_encoder(), STATE_PROMPTS["winclip"]
    few = StatePrompts(prompts.normal, prompts.abnormal, prompts.templates[-3:])
    bank = state_bank(encoder, "cable", few, batch_size=5)
    rows = []
    for state, sentences in enumerate(few.sentences("cable")):
        with torch.no_grad():
            raw = encoder.text(tokenize(encoder.tokenizer, sentences, encoder.context_length))
        torch.testing.assert_close(
            bank.states[state], F.normalize(raw.mean(dim=0), dim=0), atol=1e-5, rtol=1e-4
        )
        rows.append(F.normalize(raw, dim=-1))
    torch.testing.assert_close(bank.prompts, torch.cat(rows), atol=1e-5, rtol=1e-4)


def test_any_name_makes_sentences() -> None:
    prompts = StatePrompts(("good {}",), ("bad {}",), ("{}.", "a {}."))
    assert prompts.sentences("{x} 猫 🐈") == (
        ("good {x} 猫 🐈.", "a good {x} 猫 🐈."),
        ("bad {x} 猫 🐈.", "a bad {x} 猫 🐈."),
    )
    assert state_bank(text_encoder(), "猫 🐈", prompts).states.isfinite().all()


def test_errors_say_what_would_be_right() -> None:
    encoder = text_encoder()
    with pytest.raises(ConfigError, match="Did you mean 'winclip'"):
        state_bank(encoder, "cable", "winclp")
    with pytest.raises(VocabularyError, match='say "object"'):
        state_bank(encoder, "  ")
    with pytest.raises(VocabularyError, match="the model's context 32"):
        state_bank(encoder, "very long name " * 20)
    one = StatePrompts(("good {}",), ("bad {}",), ("{}",))
    assert state_bank(encoder, "very long name " * 20, one, on_long="truncate").states.isfinite().all()
    with pytest.raises(VocabularyError):
        StatePrompts(("good",), ("bad {}",), ("{}",))
    with pytest.raises(VocabularyError):
        StatePrompts(("good {}",), (), ("{}",))
