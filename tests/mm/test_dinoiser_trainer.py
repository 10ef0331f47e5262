"""CLIP-DINOiser's convolutions under the Runner: losses, published schedule, prediction, prepared images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mm.conftest import REPO, TWO_STEPS
from ovseg.errors import ConfigError
from ovseg.mm import load_config
from ovseg.mm.build import inferencer_from_config
from ovseg.mm.registry import DATASETS, MODELS
from ovseg.mm.runner import prepare, run_test
from ovseg.mm.train import prepare_training, run_training
from ovseg.mm.train_runner import TrainRunner
from ovseg.training.dinoiser import dinoiser_optimizer, prepare_lesson

SCENES = REPO / "configs/clip-dinoiser/clip-dinoiser_train_bundled_scenes.py"
PUBLISHED = REPO / "configs/clip-dinoiser/clip-dinoiser_train_vitb16-laion2b_imagenet.py"
QUICK = {
    "model.templates": "none",
    "model.hidden": 8,
    "model.method.short_side": 64,
    "model.method.crop": 64,
    "model.method.stride": 64,
}
SHORT = QUICK | TWO_STEPS


@pytest.mark.usefixtures("tiny_clip")
def test_trains_tests_and_answers(tmp_path: Path) -> None:
    trained = run_training(prepare_training(load_config(SCENES, SHORT), work_dir=tmp_path))
    state = torch.load(trained.checkpoint, weights_only=True)["state_dict"]
    assert set(state) == {
        f"scorer.convolutions.{name}.{kind}"
        for name in ("obj_proj", "bkg_decoder")
        for kind in ("weight", "bias")
    }
    assert 0 <= trained.metrics["mIoU"] <= 100
    found = run_test(prepare(load_config(SCENES, SHORT), work_dir=tmp_path / "test"), trained.checkpoint)
    assert set(found) == {"aAcc", "mIoU", "mAcc"}
    segment = inferencer_from_config(
        load_config(SCENES, SHORT), weights=str(trained.checkpoint), device="cpu"
    )
    assert segment.describe()["method"] == "clip-dinoiser"
    assert segment.describe()["parts"]["convolutions"]["name"] == "iter_2.pth"
    assert torch.equal(
        segment.scorer.convolutions.obj_proj.weight, state["scorer.convolutions.obj_proj.weight"]
    )
    image = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    (result,) = segment([image], "cat, dog", templates="none")
    assert result.labels.shape == (40, 70)


@pytest.mark.usefixtures("tiny_clip")
def test_losses_fall_on_one_batch() -> None:
    model = MODELS.build(load_config(SCENES, QUICK).model)
    generator = torch.Generator().manual_seed(2)
    images = [torch.randint(0, 255, (3, 64, 96), generator=generator, dtype=torch.uint8) for _ in range(2)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    sums = []
    for _ in range(12):
        losses = model(images, None, mode="loss")
        assert set(losses) == {"loss_pairs", "loss_objects"}
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        sums.append(total.item())
    assert sums[-1] < sums[0] - 0.05


@pytest.mark.usefixtures("tiny_clip")
def test_lesson_is_of_the_values_in_rgb() -> None:
    model = MODELS.build(load_config(SCENES, QUICK).model)
    generator = torch.Generator().manual_seed(4)
    bgr = torch.randint(0, 255, (3, 64, 64), generator=generator, dtype=torch.uint8)
    losses = model([bgr], None, mode="loss")
    rgb = bgr.flip(0)[None] / 255
    guide = model.guide.with_kind("v")
    lesson = prepare_lesson(rgb, model.encoder, guide, model.saliency, tap=-3, threshold=0.2)
    correlation, objectness = model.scorer.convolutions(lesson.inner)
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(losses["loss_pairs"], loss(correlation.relu(), lesson.alike.float()))
    torch.testing.assert_close(losses["loss_objects"], loss(objectness, lesson.objects.float()))
    assert model.guide.kind == "v"


@pytest.mark.usefixtures("tiny_clip")
def test_published_schedule(tmp_path: Path) -> None:
    """Learning rates of `ovseg.training.dinoiser`, which golden steps hold, from step to step."""
    for number in range(3):
        image = np.full((80 + number, 90, 3), 40 * number, np.uint8)
        folder = tmp_path / "imagenet/train" / f"n{number}"
        folder.mkdir(parents=True)
        Image.fromarray(image).save(folder / "a.JPEG")
    config = load_config(
        PUBLISHED,
        {"train_dataloader.dataset.data_root": str(tmp_path / "imagenet"), "train_dataloader.num_workers": 0}
        | {"model.hidden": 8, "model.encoder": "bundled"},
    )
    runner = TrainRunner.from_cfg(prepare_training(config, work_dir=tmp_path / "work"))
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    assert runner.train_loop.max_iters == 6300
    assert [len(batch) for batch in runner.train_dataloader.batch_sampler][-2:] == [16, 8]
    (schedule,) = runner.build_param_scheduler(runner.param_schedulers)
    wanted, wanted_schedule = dinoiser_optimizer(runner.model.scorer.convolutions)
    owners = {id(p): group for group in wanted.param_groups for p in group["params"]}
    groups = runner.optim_wrapper.optimizer.param_groups
    assert {id(p) for group in groups for p in group["params"]} == set(owners)
    for step in range(5002):
        if step % 500 == 0 or step in (4999, 5001):
            for group in groups:
                assert group["lr"] == pytest.approx(owners[id(group["params"][0])]["lr"]), step
                assert group["weight_decay"] == wanted.defaults["weight_decay"]
        wanted.step()
        wanted_schedule.step()
        runner.optim_wrapper.step()
        schedule.step()
    batch = next(iter(runner.train_dataloader))
    assert {tuple(each.shape) for each in batch["inputs"]} == {(3, 448, 448)}


def test_images_are_drawn_and_missing_ones_named(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.JPEG", "a/no.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    def paths(**options: Any) -> list[str]:
        config = {"type": "UnlabelledImages", "data_root": str(tmp_path), **options}
        dataset = DATASETS.build(config)
        return [dataset.get_data_info(i)["img_path"] for i in range(len(dataset))]

    assert paths() == [str(tmp_path / "a/1.JPEG"), str(tmp_path / "b/2.png")]
    assert len(paths(drawn=7)) == 7
    assert paths(drawn=7) == paths(drawn=7) != paths(drawn=7, draw_seed=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no images in .*empty"):
        paths(data_prefix={"img_path": "empty"})
