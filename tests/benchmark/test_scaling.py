"""The scaling benchmark: operations agree with pencil and paper, rows take turns, pictures are drawn."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from support import random_image, tiny_encoder

ROOT = Path(__file__).parents[2]


def load(name: str) -> Iterator[ModuleType]:
    spec = spec_from_file_location(f"bench_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def flops() -> Iterator[ModuleType]:
    yield from load("flops")


@pytest.fixture
def scaling() -> Iterator[ModuleType]:
    yield from load("scaling")


def test_operations_of_a_tower_by_hand(flops: ModuleType) -> None:
    """Two for each multiply-add: patches, three blocks (projections, FFN, attention), the last projection."""
    encoder = tiny_encoder()
    width, tokens, patches, out = 64, 13, 12, 32
    per_block = 2 * tokens * width * (4 + 2 * 2) * width + 2 * 2 * tokens**2 * width
    expected = 2 * patches * 3 * 16 * 16 * width + 3 * per_block + 2 * tokens * width * out
    image = torch.rand(1, 3, 48, 64)
    assert flops.count(lambda: encoder(image)) == pytest.approx(expected, rel=0.02)


def test_hours_and_prices(flops: ModuleType) -> None:
    assert flops.gpu_hours(1e7, 36e9, 100e12, 0.5) == pytest.approx(2.0)
    counted = {("sclip", "ViT-B/16"): 31 * 10**9}
    text = "\n".join(flops.estimate(counted, 1e6, 0.5, {"L4": 3.0}, (0.001, 0.002)))
    hours = 1e6 * 31e9 / (121e12 * 0.5) / 3600
    assert f"| {hours:,.1f} |" in text
    assert f"| {3 * hours:,.0f} |" in text
    assert flops.parse_prices(["A100=2.5"]) == {"A100": 2.5}
    with pytest.raises(SystemExit, match="GPU=PRICE"):
        flops.parse_prices(["T4=1"])


def test_rows_take_turns_and_the_first_round_does_not_count(scaling: ModuleType) -> None:
    seen: list[str] = []
    seconds = scaling.in_turns({name: (lambda name=name: seen.append(name)) for name in "ab"}, 2)
    assert seen == list("ababab")
    assert [len(each) for each in seconds.values()] == [2, 2]


def test_curves_become_pictures(scaling: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "clip_b16", tiny_encoder)
    monkeypatch.setattr(scaling, "noise", lambda height, width: random_image(64, 96))
    part = scaling.pixels(1, sides=(48, 64))
    assert len(part.rows) == 2
    assert [series.name for series in part.curves] == ["one window", "windows of 224"]
    scaling.draw(part, tmp_path / "new" / "curve.png")
    with Image.open(tmp_path / "new" / "curve.png") as picture:
        assert picture.width > 400
