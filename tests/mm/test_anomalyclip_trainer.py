"""AnomalyCLIP's prompts under the Runner: loss, checkpoints, prediction, published schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mm.conftest import REPO, load_tiny_clip
from ovseg.errors import ConfigError
from ovseg.methods.anomalyclip import ObjectPrompts
from ovseg.mm import load_config
from ovseg.mm.build import inferencer_from_config
from ovseg.mm.registry import MODELS
from ovseg.mm.runner import prepare, run_test
from ovseg.mm.train import prepare_training, run_training
from ovseg.training.anomaly_losses import glocal_loss

FOLDER = REPO / "configs/anomalyclip"
SCENES = FOLDER / "anomalyclip_train_bundled_scenes.py"
QUICK = {"model.deep_blocks": 0, "model.size": 64, "model.length": 4}
SHORT = QUICK | {
    "train_cfg": {"max_iters": 2, "val_interval": 2},
    "validate_first": False,
    "train_dataloader.num_workers": 0,
    "train_dataloader.batch_size": 2,
    "train_dataloader.dataset.length": 4,
    "train_dataloader.dataset.size_hw": (64, 96),
}
for key in ("val_dataloader", "test_dataloader"):
    SHORT |= {
        f"{key}.num_workers": 0,
        f"{key}.persistent_workers": False,
        f"{key}.dataset.length": 4,
        f"{key}.dataset.size_hw": (64, 96),
        f"{key}.dataset.categories": ["pizza"],
    }


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovseg.mm.anomalyclip_trainer.load_clip", load_tiny_clip)


def batch(height: int = 40, width: int = 60) -> tuple[list[torch.Tensor], list[SegDataSample]]:
    generator = torch.Generator().manual_seed(3)
    images = [
        torch.randint(0, 255, (3, height, width), generator=generator, dtype=torch.uint8) for _ in range(2)
    ]
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, 10:30, 20:50] = 1
    samples = [SegDataSample(gt_sem_seg=PixelData(data=each)) for each in (mask, torch.zeros_like(mask))]
    return images, samples


def test_trains_tests_and_answers(tmp_path: Path) -> None:
    trained = run_training(prepare_training(load_config(SCENES, SHORT), work_dir=tmp_path))
    state = torch.load(trained.checkpoint, weights_only=True)["state_dict"]
    assert set(state) == {"prompt_learner.ctx_pos", "prompt_learner.ctx_neg"}
    assert "anomaly/pixel_auroc" in trained.metrics
    prompts = ObjectPrompts.from_file(trained.checkpoint)  # as the published checkpoints are read
    assert torch.equal(prompts.ctx_pos, state["prompt_learner.ctx_pos"])
    found = run_test(prepare(load_config(SCENES, SHORT), work_dir=tmp_path / "test"), trained.checkpoint)
    assert "anomaly/pixel_auroc" in found
    head = {"model.head.keep_scores": False, "model.head.threshold": 0.6}  # as the command line says them
    inspect = inferencer_from_config(
        load_config(SCENES, SHORT | head), weights=str(trained.checkpoint), device="cpu"
    )
    assert inspect.describe()["parts"]["prompts"]["name"] == "iter_2.pth"
    image = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    (answer,) = inspect.answers([image], "bottle", tasks=("anomaly",))
    assert answer.anomaly.map.shape == (40, 70)
    assert answer.anomaly.threshold.pixel == 0.6


def test_loss_is_the_glocal_one_and_falls() -> None:
    model = MODELS.build(load_config(SCENES, QUICK).model)
    images, samples = batch()
    loss = model(images, samples, mode="loss")["loss"]
    rgb = [each.flip(0).permute(1, 2, 0).numpy() for each in images]
    method = model.detector.method
    features = method.features(model.detector.whole([np.ascontiguousarray(each) for each in rgb]))
    bank = model.prompt_learner(model.text_encoder)
    size = (64, 64)
    maps = [torch.nn.functional.interpolate(m, size, mode="bilinear") for m in method.maps(features, bank)]
    masks = torch.stack([each.gt_sem_seg.data.float() for each in samples])
    masks = (torch.nn.functional.interpolate(masks, size, mode="bilinear") > 0.5)[:, 0].float()
    wanted = glocal_loss(bank.logits(features.image, method.temperature), torch.tensor([1, 0]), maps, masks)
    torch.testing.assert_close(loss, wanted)

    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    sums = []
    for _ in range(15):
        loss = model(images, samples, mode="loss")["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sums.append(loss.item())
    assert sums[-1] < sums[0] - 0.1
    assert all(p.grad is None for p in [*model.encoder.parameters(), *model.text_encoder.parameters()])


def test_answers_follow_the_prompts() -> None:
    model = MODELS.build(load_config(SCENES, QUICK).model)
    image = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    (before,) = model.predictor()([image])
    with torch.no_grad():
        model.prompt_learner.ctx_neg += torch.randn(16, generator=torch.Generator().manual_seed(0))
    (after,) = model.predictor()([image])
    assert not np.allclose(before.map, after.map, atol=1e-4)


def test_what_it_cannot_do_is_said() -> None:
    model = MODELS.build(load_config(SCENES, QUICK).model)
    with pytest.raises(ConfigError, match="learns from masks"):
        model(batch()[0], [SegDataSample(), SegDataSample()], mode="loss")
    with pytest.raises(ConfigError, match=r"model.deep_blocks is 8: the text tower of .* has 1 blocks"):
        MODELS.build(load_config(SCENES, QUICK | {"model.deep_blocks": 8}).model)


@pytest.mark.parametrize("name", ["visa", "mvtec-ad"])
def test_published_schedule(name: str) -> None:
    config = load_config(FOLDER / f"anomalyclip_train_vitl14-336_{name}.py")
    model: Any = MODELS.build(config.model | {"deep_blocks": 0})
    assert (model.detector.size, model.prompt_learner.ctx_pos.shape[2], model.map_weight) == (518, 12, 4.0)
    assert dict(config.optim_wrapper.optimizer) == {"type": "Adam", "lr": 1e-3, "betas": (0.5, 0.999)}
    assert config.train_cfg.max_epochs == 15
    assert config.train_dataloader.batch_size == 8
    trained, tested = config.train_dataloader.dataset.type, config.test_dataloader.dataset.type
    assert {trained, tested} == {"VisADataset", "MVTecADDataset"}
