"""Every config that trains is whole, and says what it wants where its data are not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mm.conftest import ALL_CONFIGS
from ovseg.errors import ConfigError
from ovseg.mm import load_config
from ovseg.mm.registry import MODELS
from ovseg.mm.train import prepare_training
from ovseg.mm.trainable import TrainableModel


def trains(path: Path) -> bool:
    """Whether a config or one of its bases is of the training runtime; only texts are read, to be quick."""
    if "runtime/train" in str(path):
        return True
    bases = [path.parent / name for name in re.findall(r'"([^"]+\.py)"', path.read_text())]
    return any(trains(base.resolve()) for base in bases if base.is_file())


TRAINED = [path for path in ALL_CONFIGS if trains(path)]


def test_there_are_some() -> None:
    assert len(TRAINED) > 1


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_prepares(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config.default_scope == "ovseg"
    assert issubclass(MODELS.get(config.model.type), TrainableModel)
    bundled = path.stem.endswith("_bundled_scenes")
    root = config.train_dataloader.dataset.get("data_root")
    if root is not None and not Path(root).exists():
        assert not bundled, "a config on scenes needs no files"
        with pytest.raises(ConfigError, match=r"(?s)not where the config looks for it.*\nexpected:\n"):
            prepare_training(config, work_dir=tmp_path)
        return
    prepared = prepare_training(config, work_dir=tmp_path)
    assert prepared.train_dataloader.sampler.type == "DrawSampler", "cannot be resumed exactly"
    if bundled:
        assert prepared.val_dataloader is not None
