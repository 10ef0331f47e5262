from __future__ import annotations

from pathlib import Path

import pytest
import torch
from anomaly_support import random_batch, random_states
from safetensors.torch import save_file
from support import tiny_clip, tiny_encoder

from ovseg.encoders.clip import ClipEncoder
from ovseg.errors import CheckpointError, ConfigError, ShapeError
from ovseg.methods.anomalyclip import AnomalyCLIP, ObjectPrompts, smoothed
from ovseg.text.encoder import TextEncoder


def text_encoder() -> TextEncoder:
    clip = tiny_clip()
    return TextEncoder(clip.model, clip.tokenizer, context_length=clip.context_length, weights_id="tiny")


@pytest.mark.parametrize("hw", [(48, 112), (70, 99)])
def test_flat_and_odd_images_are_finite(hw: tuple[int, int]) -> None:
    found = AnomalyCLIP(tiny_encoder(), feature_blocks=(0, -1))(random_batch(2, *hw), random_states())
    assert found.map.shape == (2, *hw)
    for values in (found.map, found.score):
        assert values.isfinite().all()
        assert ((values >= 0) & (values <= 1)).all()
    assert found.map[1].std() > 0  # positions differ, also on a flat image


def test_batch_equals_one_by_one() -> None:
    method, bank = AnomalyCLIP(tiny_encoder(), feature_blocks=(1, 2)), random_states()
    images = random_batch(3, 48, 64)
    together = method(images, bank)
    for index in range(3):
        alone = method(images[index : index + 1], bank)
        torch.testing.assert_close(alone.map[0], together.map[index], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.score[0], together.score[index], atol=1e-5, rtol=1e-4)


def test_blocks_do_not_share_features() -> None:
    features = AnomalyCLIP(tiny_encoder(), feature_blocks=(0, 1, 2)).features(random_batch(1, 48, 64))
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert (features.tokens[one] - features.tokens[other]).abs().max() > 1e-2
    turned = AnomalyCLIP(tiny_encoder(), feature_blocks=(2, 0)).features(random_batch(1, 48, 64))
    torch.testing.assert_close(turned.tokens, features.tokens[[2, 0]])


def test_every_option_matters() -> None:
    images, bank = random_batch(1, 64, 64), random_states()
    reference = AnomalyCLIP(tiny_encoder())(images, bank).map
    changes = dict(dual_blocks=1, feature_blocks=(0,), temperature=3.0, smooth_std_px=0.0)
    for name, value in changes.items():
        changed = AnomalyCLIP(tiny_encoder(), **{name: value})(images, bank).map
        assert (changed - reference).abs().max() > 1e-4, name


def test_smoothing_keeps_flat_maps_and_mirrors_borders() -> None:
    flat = torch.full((2, 9, 12), 0.25)
    torch.testing.assert_close(smoothed(flat, 4.0), flat)
    maps = torch.rand(2, 9, 12)
    torch.testing.assert_close(smoothed(maps, 2.0).flip(-1), smoothed(maps.flip(-1), 2.0))
    torch.testing.assert_close(smoothed(maps, 2.0).sum(), maps.sum())


def test_prompts_from_a_file_give_a_bank(tmp_path: Path) -> None:
    encoder = text_encoder()
    drawn = ObjectPrompts(32, length=6, deep_blocks=1, deep_length=2)
    state = {f"prompt_learner.{name}": value.detach() for name, value in drawn.state_dict().items()}
    state["prompt_learner.token_prefix_pos"] = torch.zeros(1)  # what official files hold besides
    save_file(state, tmp_path / "prompts.safetensors")
    bank = ObjectPrompts.from_file(tmp_path / "prompts.safetensors")(encoder)
    torch.testing.assert_close(bank.states, drawn(encoder).states)
    torch.testing.assert_close(bank.states.norm(dim=-1), torch.ones(2))
    clip = tiny_clip()
    image = random_batch(2, 48, 64)
    assert AnomalyCLIP(ClipEncoder(clip.model.visual))(image, bank).map.isfinite().all()


def test_prompts_without_learning_are_plain_sentences() -> None:
    encoder = text_encoder()
    tokens = encoder.tokenizer(["x x x object.", "x x x damaged object."], context_length=32)
    words = encoder.text.token_embedding(tokens)
    prompts = ObjectPrompts(32, length=3, deep_blocks=0, deep_length=0)
    with torch.no_grad():
        prompts.ctx_pos.copy_(words[0, 1:4])
        prompts.ctx_neg.copy_(words[1, 1:4])
        bank = prompts(encoder)
    expected = encoder.encode(["x x x object.", "x x x damaged object."])
    torch.testing.assert_close(bank.states, expected)


def test_prompts_learn() -> None:
    prompts = ObjectPrompts(32, length=4, deep_blocks=1, deep_length=2)
    prompts(text_encoder()).states.select(1, 0).sum().backward()
    assert all(each.grad is not None and each.grad.abs().max() > 0 for each in prompts.parameters())


def test_errors_say_what_would_be_right() -> None:
    with pytest.raises(ConfigError, match=r"blocks of -3\.\.2"):
        AnomalyCLIP(tiny_encoder(), feature_blocks=(6, 12))
    with pytest.raises(ConfigError, match="overwrite words"):
        ObjectPrompts(32, length=2, deep_length=4)
    with pytest.raises(CheckpointError, match="expected ctx_pos"):
        ObjectPrompts.from_state({"weight": torch.zeros(1)})
    with pytest.raises(ShapeError, match="prompts are 48 wide, the text tower 32"):
        ObjectPrompts(48)(text_encoder())
    with pytest.raises(ShapeError, match="takes 32"):
        ObjectPrompts(32, length=30)(text_encoder())
