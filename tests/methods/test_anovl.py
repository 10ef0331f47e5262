from __future__ import annotations

import math

import pytest
import torch
from anomaly_support import random_batch, random_states
from support import tiny_encoder

from ovseg.errors import ConfigError, ShapeError
from ovseg.methods.anovl import AnoVL, copies, warped


def test_copies_are_twenty_two() -> None:
    image = random_batch(2, 32, 48)
    found = list(copies(image))
    assert len(found) == 22
    assert torch.equal(found[0], image)
    assert [each.shape for each in found].count((2, 3, 48, 32)) == 2
    assert all(each.shape == image.shape for each in found[:19])
    grey = found[18]
    torch.testing.assert_close(grey[:, 0], grey[:, 2])


def test_a_turn_is_one_in_pixels() -> None:
    image = random_batch(1, 33, 33)
    turned = warped(image, math.pi / 2, (0.0, 0.0))
    quarter = min((image.rot90(k, dims=(-2, -1)) - turned).abs().max() for k in (1, 3))
    assert quarter < 1e-4
    dot = torch.zeros(1, 3, 41, 81)
    dot[..., 20, 55] = 1.0  # 15 pixels right of the middle
    middle = warped(dot, math.pi / 2, (0.0, 0.0))[0, 0, :, 40]
    assert abs(int(middle.argmax()) - 20) == 15
    assert middle.max() > 0.99


@pytest.mark.parametrize("hw", [(48, 112), (70, 99)])
def test_flat_and_odd_images_are_finite(hw: tuple[int, int]) -> None:
    found = AnoVL(tiny_encoder())(random_batch(2, *hw), random_states())
    assert found.map.shape == (2, hw[0] // 16, hw[1] // 16)
    for values in (found.map, found.score):
        assert values.isfinite().all()
        assert ((values > 0) & (values < 1)).all()
    resized = found.resized(hw).map
    torch.testing.assert_close(resized[:, :: hw[0] - 1, :: hw[1] - 1], found.map[:, [0, -1]][:, :, [0, -1]])


def test_batch_equals_one_by_one() -> None:
    method, bank, images = AnoVL(tiny_encoder(), steps=2), random_states(), random_batch(2, 32, 48)
    together = method(images, bank)
    for index in range(2):
        alone = method(images[index : index + 1], bank)
        torch.testing.assert_close(alone.map[0], together.map[index], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.score[0], together.score[index], atol=1e-5, rtol=1e-4)


def test_fitting_lowers_the_loss_and_leaves_no_gradient() -> None:
    method, bank = AnoVL(tiny_encoder(), steps=20), random_states()
    features = method.features(random_batch(1, 48, 64))
    start, noise = method.draws(bank, (3, 4))
    own = features.grid.permute(0, 2, 3, 1).flatten(1, 2)[0]
    with torch.no_grad():
        fitted, losses = start.fitted(own, bank, noise.flatten(1, 2), learning_rate=0.01)
    assert losses[-1] < losses[0]
    assert not fitted.weight.requires_grad
    assert (fitted.weight - start.weight).abs().max() > 0.01
    assert bank.prompts.grad is None


def test_every_option_matters() -> None:
    images, bank = random_batch(1, 32, 48), random_states()
    plain = dict(with_copies=False, steps=2)
    reference = AnoVL(tiny_encoder(), **plain)(images, bank)
    changes = dict(
        dual_blocks=1, temperature=5.0, steps=0, learning_rate=0.1, weight_decay=5.0, noise_std=3.0,
        smooth_cells=1, seed=1,
    )  # fmt: skip
    for name, value in changes.items():
        changed = AnoVL(tiny_encoder(), **(plain | {name: value}))(images, bank)
        assert (changed.map - reference.map).abs().max() > 1e-6, name
    assert AnoVL(tiny_encoder(), steps=0)(images, bank).score != reference.score


def test_errors_say_what_would_be_right() -> None:
    with pytest.raises(ConfigError, match="must be odd"):
        AnoVL(tiny_encoder(), smooth_cells=2)
    method, bank = AnoVL(tiny_encoder()), random_states()
    features = method.features(random_batch(1, 48, 64))
    with pytest.raises(ShapeError, match=r"noise is \(4, 3, 32\), patch tokens \(3, 4, 32\)"):
        method.patch_tokens(features, bank, noise=torch.zeros(5, 4, 3, 32))
