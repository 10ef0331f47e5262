"""A tiny random CLIP in the place of every encoder, and a Runner that leaves nothing behind."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from support import tiny_part

from ovseg.encoders.clip_loading import LoadedClip
from ovseg.methods import METHODS
from ovseg.mm import compiled_ops
from ovseg.parts import LOADERS

compiled_ops.install()  # mmcv looks once, and any file of tests may be the first to import its models

REPO = Path(__file__).parents[2]
ALL_CONFIGS = sorted(path for path in (REPO / "configs").rglob("*.py") if "_base_" not in path.parts)
#: Training-free methods; the others are trained.
CONFIGS = [path for path in ALL_CONFIGS if path.parent.name in METHODS and "_train_" not in path.stem]
#: Changes to a config that trains on scenes: two steps in this process, one scene to validate and to test.
TWO_STEPS: dict[str, Any] = {
    **{f"{part}_dataloader.num_workers": 0 for part in ("train", "val", "test")},
    **{f"{part}_dataloader.persistent_workers": False for part in ("train", "val", "test")},
    "train_dataloader.batch_size": 2,
    "val_dataloader.dataset.length": 1,
    "test_dataloader.dataset.length": 1,
    "train_cfg.max_iters": 2,
    "train_cfg.val_interval": 2,
    "validate_first": False,
}


@cache
def _tiny_model() -> open_clip.CLIP:
    generator = torch.Generator().manual_seed(3)
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 3, "head_width": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def load_tiny_clip(name: str = "", **_: Any) -> LoadedClip:
    """In the place of `load_clip`: the same small random model, whatever is asked for."""
    return LoadedClip(
        model=copy.deepcopy(_tiny_model()),
        tokenizer=open_clip.get_tokenizer("ViT-B-16"),
        context_length=77,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        name=f"tiny in place of {name}",
        weights_sha256="0" * 64,
        licence="",
        notice=None,
        weights_file=Path("tiny"),
    )


@pytest.fixture
def tiny_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `Inferencer` gets tiny random networks: configs are tested without their weights."""
    monkeypatch.setattr("ovseg.inferencer.load_clip", load_tiny_clip)
    for part in LOADERS:
        monkeypatch.setitem(LOADERS, part, lambda name, part=part: tiny_part(part))


@pytest.fixture(autouse=True)
def _quick_and_forgetful_mmengine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The Runner's reports cost seconds each; loggers, scopes and visualisers stay in global tables."""
    monkeypatch.setattr(Config, "pretty_text", property(lambda self: str(self.to_dict())))
    monkeypatch.setattr("mmengine.runner.runner.collect_env", dict)
    tables = (MMLogger, MessageHub, DefaultScope, Visualizer)
    before = [dict(each._instance_dict) for each in tables]
    yield
    for table, instances in zip(tables, before, strict=True):
        for name in set(table._instance_dict) - set(instances):
            instance = table._instance_dict.pop(name)
            for handler in list(getattr(instance, "handlers", ())):
                handler.close()
