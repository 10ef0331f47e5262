from __future__ import annotations

import pytest
import torch
from anomaly_support import random_batch, random_states
from support import tiny_encoder

from ovseg.anomaly_structures import StateBank
from ovseg.errors import ConfigError, ShapeError
from ovseg.methods.winclip import WinCLIP, harmonic_map, nearest_distance, window_cells


def test_windows_are_seen_by_the_class_token() -> None:
    encoder = tiny_encoder()
    image = random_batch(1, 48, 80)
    found = WinCLIP(encoder, windows=(2,), max_windows=3).features(image)
    entering, hw = encoder.embed(image, WinCLIP(encoder).positions)
    assert hw == found.hw == (3, 5)
    grid = entering[:, 1:].unflatten(1, hw)
    number = 0
    for top in range(2):
        for left in range(4):
            cells = grid[:, top : top + 2, left : left + 2].flatten(1, 2)
            tokens = torch.cat([entering[:, :1], cells], dim=1)
            for block in encoder.tower.blocks:
                tokens = block(tokens)
            expected = encoder.tower.finish(tokens)[:, 0]
            torch.testing.assert_close(found.windows[2][:, number], expected.detach(), atol=1e-4, rtol=1e-4)
            number += 1
    assert found.windows[2].shape[1] == number
    torch.testing.assert_close(found.image, encoder(image).prefix[:, 0].detach(), atol=1e-2, rtol=1e-2)


def test_harmonic_map_against_a_loop() -> None:
    cells = window_cells((3, 4), 2)
    scores = torch.rand(2, len(cells)) + 0.1
    expected = torch.empty(2, 12)
    for cell in range(12):
        own = [1 / scores[:, number] for number, window in enumerate(cells.tolist()) if cell in window]
        expected[:, cell] = len(own) / torch.stack(own).sum(dim=0)
    torch.testing.assert_close(harmonic_map(scores, cells, (3, 4)).flatten(1), expected)


@pytest.mark.parametrize("hw", [(64, 64), (48, 112), (70, 99)])
def test_flat_and_odd_images_are_finite(hw: tuple[int, int]) -> None:
    found = WinCLIP(tiny_encoder())(random_batch(2, *hw), random_states())
    assert found.map.shape == (2, hw[0] // 16, hw[1] // 16)
    for values in (found.map, found.score):
        assert values.isfinite().all()
        assert ((values >= 0) & (values <= 1)).all()
    assert found.resized(hw).map.shape == (2, *hw)


def test_batch_equals_one_by_one() -> None:
    method, bank, images = WinCLIP(tiny_encoder(), max_windows=7), random_states(), random_batch(3, 48, 64)
    good = method.features(random_batch(2, 64, 48))
    for reference in (None, good):
        together = method(images, bank, reference)
        for index in range(3):
            alone = method(images[index : index + 1], bank, reference)
            torch.testing.assert_close(alone.map[0], together.map[index], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(alone.score[0], together.score[index], atol=1e-5, rtol=1e-4)


def test_an_image_is_not_far_from_itself() -> None:
    method = WinCLIP(tiny_encoder())
    images = random_batch(3, 48, 64)
    found = method.features(images)
    assert found.distances(found).max() < 1e-5
    assert found.distances(method.features(images[:1])).amax(dim=(1, 2)).argmin() == 0
    assert method.features(images[2:]).distances(method.features(images[:1])).min() > 1e-3


def test_swapped_states_give_the_complement() -> None:
    method, bank = WinCLIP(tiny_encoder(), windows=()), random_states()
    images = random_batch(2, 48, 64)
    swapped = StateBank(bank.states.flip(0), bank.prompts)
    torch.testing.assert_close(method(images, swapped).score, 1 - method(images, bank).score)


def test_distances_stay_in_range_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    features, good = torch.randn(2, 5, 8), torch.randn(7, 8)
    whole = nearest_distance(features, good)
    monkeypatch.setattr("ovseg.methods.winclip.CHUNK_ELEMENTS", 3)
    torch.testing.assert_close(nearest_distance(features, good), whole)
    assert (nearest_distance(-good[None], good) <= 1).all()


def test_errors_say_what_would_be_right() -> None:
    method, images = WinCLIP(tiny_encoder(), windows=(2, 4)), random_batch(1, 48, 64)
    with pytest.raises(ConfigError, match="4x4 patches does not fit a grid of 3x4"):
        method.features(images)
    small = WinCLIP(tiny_encoder(), windows=(2,))
    with pytest.raises(ShapeError, match="text has 24 dimensions and the image 32"):
        small(images, random_states(dim=24))
    with pytest.raises(ConfigError, match="windows of"):
        small.features(images).distances(WinCLIP(tiny_encoder(), windows=(3,)).features(images))
