"""Every dataset's config, run through mmengine's Runner on three images in the dataset's own layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mm.conftest import CONFIGS, REPO
from mm.layouts import LAYOUTS
from ovseg.answers import Answers
from ovseg.errors import CheckpointError, ConfigError
from ovseg.inferencer import Inferencer
from ovseg.mm import load_config
from ovseg.mm.registry import MODELS
from ovseg.mm.runner import name_anew, prepare, run_test
from ovseg.results import Segmentation
from ovseg.text.vocabulary import Vocabulary

SMALL = {"test_dataloader.num_workers": 0, "test_dataloader.persistent_workers": False}


def red_channel_is_the_class(self: Inferencer, images: Any, classes: Any, **_: Any) -> Iterator[Answers]:
    """A perfect model for `layouts`: what it predicts is written in the picture."""
    names = Vocabulary.parse(classes).names
    for image in images:
        found = Segmentation(image[..., 0].copy(), names, np.ones(image.shape[:2], np.float32))
        yield Answers(image.shape[:2], names, segmentation=found)


def config_for(method: str, dataset: str, data: Path, **options: Any) -> Any:
    (path,) = (p for p in CONFIGS if p.parent.name == method and p.stem.split("_", 2)[2] == dataset)
    config = load_config(path, SMALL | {"model.templates": "none"} | options)
    if dataset in LAYOUTS:
        config.test_dataloader.dataset.data_root = config.test_dataloader.dataset.data_root.replace(
            "data/", f"{data}/", 1
        )
    return config


def class_count(config: Any) -> int:
    return len(Vocabulary.parse(config.model.vocabulary))


@pytest.mark.usefixtures("tiny_clip")
@pytest.mark.parametrize("dataset", LAYOUTS)
def test_perfect_prediction_is_100(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inferencer, "answers", red_channel_is_the_class)
    config = config_for("sclip", dataset, tmp_path)
    LAYOUTS[dataset].write(tmp_path, class_count(config))
    metrics = run_test(prepare(config, work_dir=tmp_path / "work"))
    assert metrics == {"aAcc": 100.0, "mIoU": 100.0, "mAcc": 100.0}


@pytest.mark.usefixtures("tiny_clip")
def test_wrong_prediction_is_not_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: Inferencer, images: Any, classes: Any, **kwargs: Any) -> Iterator[Answers]:
        mirrored = [image[..., ::-1] for image in images]  # red and blue swapped: every pixel is class 7
        return red_channel_is_the_class(self, mirrored, classes)

    monkeypatch.setattr(Inferencer, "answers", wrong)
    config = config_for("sclip", "voc21", tmp_path)
    LAYOUTS["voc21"].write(tmp_path, class_count(config))
    assert run_test(prepare(config, work_dir=tmp_path / "work"))["mIoU"] == 0.0


@pytest.mark.usefixtures("tiny_clip")
@pytest.mark.parametrize(
    ("method", "dataset"),
    [
        ("naclip", "voc20"),
        ("maskclip", "cityscapes"),
        ("clearclip", "ade20k"),
        ("clip", "voc21"),
        ("sclip", "context60"),
    ],
)
def test_the_real_path_runs(method: str, dataset: str, tmp_path: Path) -> None:
    small = {"model.method.short_side": 64, "model.method.crop": 64, "model.method.stride": 32}
    config = config_for(method, dataset, tmp_path, **small)
    LAYOUTS[dataset].write(tmp_path, class_count(config))
    config = prepare(
        config, work_dir=tmp_path / "work", out=tmp_path / "out", show_dir=tmp_path / "show", limit=2
    )
    metrics = run_test(config)
    assert set(metrics) == {"aAcc", "mIoU", "mAcc"}
    assert all(0 <= value <= 100 for value in metrics.values())
    names = [Path(name).name for name in LAYOUTS[dataset].names[:2]]
    suffix = "_leftImg8bit" if dataset == "cityscapes" else ""
    for folder in ("out", "show"):
        assert sorted(p.name for p in (tmp_path / folder).iterdir()) == [
            f"{name}{suffix}.png" for name in names
        ]
    labels = np.array(Image.open(tmp_path / "out" / f"{names[0]}{suffix}.png"))
    assert labels.shape == (37, 53)


def test_missing_data_is_named(tmp_path: Path) -> None:
    config = config_for("sclip", "ade20k", tmp_path)
    with pytest.raises(ConfigError, match=r"images/validation.*docs/datasets\.md"):
        prepare(config, work_dir=tmp_path)


@pytest.mark.usefixtures("tiny_clip")
def test_vocabulary_of_another_dataset_is_refused(tmp_path: Path) -> None:
    config = config_for("sclip", "voc21", tmp_path, **{"model.vocabulary": "voc20"})
    LAYOUTS["voc21"].write(tmp_path, 21)
    with pytest.raises(ConfigError, match=r"20 classes and the dataset 21"):
        run_test(prepare(config, work_dir=tmp_path / "work"))


@pytest.mark.usefixtures("tiny_clip")
@pytest.mark.parametrize("named_in", ["command", "config"])
def test_checkpoints_never_run_code(tmp_path: Path, named_in: str) -> None:
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str, str]]:
            return open, (str(marker), "w")

    bomb = tmp_path / "bomb.pth"
    torch.save({"state_dict": {"scorer": Bomb()}}, bomb)
    config = config_for("clip", "scenes", tmp_path, **{"test_dataloader.dataset.length": 1})
    config.load_from = str(bomb) if named_in == "config" else None
    with pytest.raises(CheckpointError, match="more than tensors"):
        run_test(prepare(config, work_dir=tmp_path / "work"), bomb if named_in == "command" else None)
    assert not marker.exists()


@pytest.mark.usefixtures("tiny_clip")
def test_checkpoint_of_the_model_is_loaded(tmp_path: Path) -> None:
    config = config_for("clip", "scenes", tmp_path, **{"test_dataloader.dataset.length": 1})
    state = MODELS.build(config.model).state_dict()
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"state_dict": zeros}, tmp_path / "zero.pth")
    run_test(prepare(config, work_dir=tmp_path / "work", out=tmp_path / "out"), tmp_path / "zero.pth")
    # with all weights zero all scores are equal, and every pixel gets the first class
    (labels,) = (np.array(Image.open(path)) for path in (tmp_path / "out").iterdir())
    assert not labels.any()


@pytest.mark.usefixtures("tiny_clip")
def test_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    config = config_for("clip", "scenes", tmp_path, **{"test_dataloader.dataset.length": 1})
    state = MODELS.build(config.model).state_dict()
    del state["scorer.encoder.visual.conv1.weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match=r"(?s)does not fit the model.*conv1"):
        run_test(prepare(config, work_dir=tmp_path / "work"), tmp_path / "less.pth")


@pytest.mark.usefixtures("tiny_clip")
def test_own_method_in_a_config(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        f"_base_ = '{REPO}/configs/clip/clip_bundled_scenes.py'\n"
        "model = dict(method=dict(_delete_=True, type='Scorer', short_side=64,\n"
        "    correlation=dict(type='SelfCorrelation', parts=('v',)), residual=False,\n"
        "    windows=dict(type='WindowPlan', crop=64, stride=32), refine=[dict(type='PAMR', steps=1)]))\n"
        "test_dataloader = dict(dataset=dict(length=2))\n"
    )
    config = load_config(tmp_path / "mine.py", SMALL | {"model.templates": "none"})
    metrics = run_test(prepare(config, work_dir=tmp_path / "work"))
    assert 0 <= metrics["mIoU"] < 50


def test_runs_within_a_second_do_not_share_mmengines_tables() -> None:
    config = Config({}, filename="configs/sclip/sclip_vitb16_voc21.py")
    names = []
    for _ in range(2):
        name_anew(config)
        names.append(config.experiment_name)
    assert len(set(names)) == 2
    assert all(name.startswith("sclip_vitb16_voc21 run ") and name.count("run") == 1 for name in names)
