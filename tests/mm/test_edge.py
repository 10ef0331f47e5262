"""The registry table, the scenes as a dataset, and what is said when OpenMMLab is absent or mixed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import ConfigDict

from ovseg.errors import MissingDependencyError
from ovseg.methods import METHODS
from ovseg.mm import dependencies
from ovseg.mm.build import build_vocabulary
from ovseg.mm.registry import CORE_PARTS, DATASETS, MODELS
from ovseg.scenes import SceneSet


def test_core_parts_are_found_by_name() -> None:
    assert set(METHODS) < set(CORE_PARTS)
    for name, part in CORE_PARTS.items():
        assert MODELS.get(name) is part
        assert MODELS.get(f"ovseg.{name}") is part
    assert MODELS.scope == "ovseg"


def test_the_core_has_no_decorators() -> None:
    core = [path for path in Path(dependencies.__file__).parents[1].rglob("*.py") if "mm" not in path.parts]
    assert len(core) > 20
    assert [path.name for path in core if "register_module" in path.read_text()] == []


def test_no_compiled_ops() -> None:
    package = Path(dependencies.__file__).parent
    assert [path.name for path in package.glob("*.py") if "import mmcv.ops" in path.read_text()] == []


def test_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mmseg" else find(name))
    with pytest.raises(MissingDependencyError, match=r"mmseg cannot be imported: pip install ovseg\[mm\]"):
        dependencies.check_openmmlab()


def test_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    dependencies.check_openmmlab()
    real = dependencies.installed
    monkeypatch.setattr(dependencies, "installed", lambda name: name == "mmcv-lite" or real(name))
    with pytest.raises(
        MissingDependencyError, match=r"mmcv-lite and onedl-mmcv.*pip uninstall -y onedl-mmcv mmcv-lite"
    ):
        dependencies.check_openmmlab()


def test_scenes_are_the_generators() -> None:
    scenes = SceneSet("val", 3, length=4, size_hw=(64, 96))
    pipeline = [{"type": "ovseg.RenderScene"}, {"type": "mmseg.PackSegInputs"}]
    options = {
        "split": "val",
        "seed": 3,
        "length": 4,
        "size_hw": (64, 96),
        "pipeline": pipeline,
        "test_mode": True,
    }
    dataset = DATASETS.build(ConfigDict(type="ScenesDataset", **options))
    assert len(dataset) == 4
    assert tuple(dataset.metainfo["classes"]) == scenes.classes
    assert len(dataset.metainfo["palette"]) == len(scenes.classes)
    for index in range(4):
        item = dataset[index]
        scene = scenes[index]
        np.testing.assert_array_equal(item["inputs"].flip(0).permute(1, 2, 0).numpy(), scene.image)
        np.testing.assert_array_equal(item["data_samples"].gt_sem_seg.data[0].numpy(), scene.labels)
        assert item["data_samples"].img_path == f"scenes_val_3_{index:05d}.png"
        assert item["data_samples"].ori_shape == (64, 96)
    limited = DATASETS.build(ConfigDict(type="ScenesDataset", indices=2, **options))
    assert len(limited) == 2


def test_vocabularies_of_a_config() -> None:
    assert build_vocabulary("voc21").names[0] == "background"
    assert build_vocabulary(ConfigDict(type="SceneClasses")).names == SceneSet("test").classes
    assert build_vocabulary(ConfigDict({"cat": ["kitten"], "dog": None})).names == ("cat", "dog")
