"""The RGB control: proxyclip with colour in the place of its guide, and colour is what it groups by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import random_bank, random_image, tiny_encoder

from ovseg.correlation.colour import ColourCorrelation, ColourGuide
from ovseg.methods.proxyclip import proxyclip
from ovseg.methods.rgb_control import rgb_control
from ovseg.scorer import Scorer

WINDOWS = dict(short_side=None, crop=64, stride=32)


def test_differs_from_proxyclip_by_its_affinity_alone() -> None:
    encoder, image = tiny_encoder(), random_image(75, 101)
    control = rgb_control(encoder, cell_px=8, std_colour=0.2, std_px=20.0, **WINDOWS)
    proxy = proxyclip(encoder, ColourGuide(8), **WINDOWS)
    proxy.correlation = ColourCorrelation(0.2, 20.0)
    pictures, bank = control.prepare([image]), random_bank()
    torch.testing.assert_close(control(pictures, bank).cosine, proxy(pictures, bank).cosine)


def test_mixes_what_has_one_colour() -> None:
    image = np.full((64, 96, 3), 40, np.uint8)
    image[:, 48:] = (230, 60, 20)
    noisy = (image + np.random.default_rng(0).integers(0, 6, image.shape)).astype(np.uint8)
    scorer = rgb_control(tiny_encoder(), short_side=None, crop=None, std_colour=0.05, std_px=None)
    grid = scorer.encode(scorer.prepare([noisy])).grid[0]  # (D, 14, 14): padded to 112 x 112
    alike = torch.einsum("dhw,dhw->hw", grid[:, 3:11, 2:6], grid[:, 3:11, 3:7])
    across = torch.einsum("dh,dh->h", grid[:, 3:11, 3], grid[:, 3:11, 9])
    assert alike.min() > 0.999
    assert across.max() < 0.99


@pytest.mark.parametrize("space", ["rgb", "oklab"])
def test_flat_image_and_batch(space: str) -> None:
    scorer: Scorer = rgb_control(tiny_encoder(), space=space, texture=0.5, **WINDOWS)
    flat, other = np.full((70, 90, 3), 128, np.uint8), random_image(70, 90)
    bank = random_bank()
    together = scorer(scorer.prepare([flat, other]), bank).cosine
    assert together.isfinite().all()
    for index, image in enumerate((flat, other)):
        alone = scorer(scorer.prepare([image]), bank).cosine
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=1e-4)
