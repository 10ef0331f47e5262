"""Prompt learning on the score map under the Runner: loss, classes of a step, checkpoints, any words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mm.conftest import REPO, TWO_STEPS
from ovseg.errors import ConfigError
from ovseg.mm import load_config
from ovseg.mm.build import inferencer_from_config
from ovseg.mm.registry import MODELS
from ovseg.mm.runner import prepare, run_test
from ovseg.mm.train import prepare_training, run_training

FOLDER = REPO / "configs/coop"
SCENES = FOLDER / "maskclip-coop_train_bundled_scenes.py"
QUICK = {
    "model.length": 2,
    "model.method.short_side": 64,
    "model.method.crop": 64,
    "model.method.stride": 64,
    "model.classes_per_step": 8,
}
SHORT = QUICK | TWO_STEPS
pytestmark = pytest.mark.usefixtures("tiny_clip")


def batch() -> tuple[list[torch.Tensor], list[SegDataSample]]:
    generator = torch.Generator().manual_seed(3)
    images = [torch.randint(0, 255, (3, 64, 96), generator=generator, dtype=torch.uint8) for _ in range(2)]
    labels = torch.full((1, 64, 96), 300)
    labels[:, :20], labels[:, 20:40] = 65535, 7  # 255 is a class of 339
    return images, [SegDataSample(gt_sem_seg=PixelData(data=labels)) for _ in images]


def test_trains_tests_and_answers_any_words(tmp_path: Path) -> None:
    trained = run_training(prepare_training(load_config(SCENES, SHORT), work_dir=tmp_path))
    state = torch.load(trained.checkpoint, weights_only=True)["state_dict"]
    assert {name: tuple(each.shape) for name, each in state.items()} == {"context.vectors": (1, 2, 16)}
    assert 0 <= trained.metrics["mIoU"] <= 100
    found = run_test(prepare(load_config(SCENES, SHORT), work_dir=tmp_path / "test"), trained.checkpoint)
    assert set(found) == {"aAcc", "mIoU", "mAcc"}
    segment = inferencer_from_config(
        load_config(SCENES, SHORT), weights=str(trained.checkpoint), device="cpu"
    )
    assert segment.describe()["parts"]["context"]["name"] == "iter_2.pth"
    image = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    (result,) = segment([image], "zebra, aardvark = ant bear | earth pig")
    assert result.labels.shape == (40, 70)
    assert segment.bank("zebra, aardvark = ant bear | earth pig")[1].embeddings.shape == (4, 16)


@pytest.mark.parametrize("specific", [False, True])
def test_loss_falls_and_reaches_the_context_alone(specific: bool) -> None:
    changes = {"model.classes_per_step": None, "model.class_specific": specific}
    model = MODELS.build(load_config(SCENES, QUICK | changes).model)
    images, samples = batch()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sums = []
    for _ in range(6):
        loss = model(images, samples, mode="loss")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sums.append(loss.item())
    assert sums[-1] < sums[0]
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["context.vectors"]
    assert model.context.vectors.shape == (len(model.train_vocabulary) if specific else 1, 2, 16)


def test_classes_of_a_step_keep_their_labels() -> None:
    model = MODELS.build(load_config(SCENES, QUICK).model)
    labels = [sample.gt_sem_seg.data[0] for sample in batch()[1]]
    some, renumbered = model._classes_of_step(labels)
    assert len(some) == 8
    names = model.train_vocabulary.names
    for old, new in zip(labels, renumbered, strict=True):
        assert torch.equal(old == 65535, new == 65535)
        for k in (7, 300):
            (number,) = new[old == k].unique().tolist()
            assert some.names[number] == names[k]


def test_words_are_encoded_anew_when_the_context_has_changed() -> None:
    model = MODELS.build(load_config(SCENES, QUICK).model)
    before = model.predictor().bank("cat, dog")[1].embeddings
    assert torch.equal(model.predictor().bank("cat, dog")[1].embeddings, before)
    with torch.no_grad():
        model.context.vectors += torch.randn(16, generator=torch.Generator().manual_seed(0))
    after = model.predictor().bank("cat, dog")[1].embeddings
    assert not torch.allclose(before, after, atol=1e-3)
    assert not after.requires_grad


def test_what_it_cannot_do_is_said() -> None:
    model = MODELS.build(load_config(SCENES, QUICK).model)
    with pytest.raises(ConfigError, match="learned from label maps"):
        model(batch()[0], [SegDataSample(), SegDataSample()], mode="loss")
    with pytest.raises(ConfigError, match="classes_per_step at least 2"):
        MODELS.build(load_config(SCENES, QUICK | {"model.classes_per_step": 1}).model)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_builds(path: Path) -> None:
    config = load_config(path)
    model = MODELS.build(config.model)
    assert model.trained() == ("context",)
    assert len(config.train_dataloader.dataset.pipeline) > 1
