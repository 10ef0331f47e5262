"""Fixtures for the whole suite: seeds, a private cache, small random models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from run_helpers import save
from support import random_bank, tiny_clip, tiny_encoder, tiny_part

from ovseg.encoders.clip import ClipEncoder
from ovseg.parts import LOADERS
from ovseg.structures import TextBank

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # the models here are tiny: more threads wait more than they compute


@pytest.fixture(autouse=True)
def _seeded(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setenv("OVSEG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def encoder() -> ClipEncoder:
    return tiny_encoder()


@pytest.fixture
def bank() -> TextBank:
    return random_bank()


@pytest.fixture
def tiny_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every encoder name gives the random two-tower CLIP, and every other part a random network."""
    monkeypatch.setattr("ovseg.inferencer.load_clip", lambda *args, **options: tiny_clip())
    for part in LOADERS:
        monkeypatch.setitem(LOADERS, part, lambda name, part=part: tiny_part(part))
    monkeypatch.setattr("ovseg.parts.weights_file", lambda part, name: Path(__file__))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six images of two sizes in two folders."""
    for number in range(4):
        save(tmp_path / "photos" / f"im{number}.png", number)
    save(tmp_path / "photos/sub/a b 猫.jpg", 4, (24, 18))
    save(tmp_path / "photos/sub/-dash.webp", 5, (24, 18))
    return tmp_path / "photos"
