"""Counting under mmengine: layouts of three images, errors, and CLIP-EBC from training to its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import yaml
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from PIL import Image

from mm.conftest import REPO, TWO_STEPS, load_tiny_clip
from ovseg.answers import Answers
from ovseg.counting_results import ClassCount, Counts
from ovseg.errors import CheckpointError, ConfigError, VocabularyError
from ovseg.inferencer import Inferencer
from ovseg.mm import load_config
from ovseg.mm.build import inferencer_from_config
from ovseg.mm.counting_metric import CountingMetric
from ovseg.mm.registry import DATASETS, MODELS
from ovseg.mm.runner import prepare, run_test
from ovseg.mm.train import prepare_training, run_training

SMALL = {"test_dataloader.num_workers": 0, "test_dataloader.persistent_workers": False}
COUNTS, SIZES = (3, 0, 7), ((36, 50), (48, 32), (40, 40))
CONFIGS = sorted((REPO / "configs" / "counting").glob("*.py"))
EBC = sorted((REPO / "configs" / "clip-ebc").glob("*.py"))


def write_image(path: Path, number: int, size_hw: tuple[int, int]) -> list[list[float]]:
    """A picture whose red is the number of dots; PNG data, so that nothing is lost. Its dots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    pixels[..., 0] = number
    Image.fromarray(pixels).save(path, format="PNG")
    places = np.random.default_rng(number).uniform(2, min(size_hw) - 2, (number, 2))
    return places.round(1).tolist()


def write_fsc147(root: Path) -> None:
    annotations, names = {}, ""
    for index, (number, size_hw) in enumerate(zip(COUNTS, SIZES, strict=True), 1):
        dots = write_image(root / f"images_384_VarV2/{index}.jpg", number, size_hw)
        annotations[f"{index}.jpg"] = {"points": dots, "box_examples_coordinates": []}
        names += f"{index}.jpg\t{('sea shells', 'peas', 'sea shells')[index - 1]}\n"
    (root / "annotation_FSC147_384.json").write_text(json.dumps(annotations))
    (root / "Train_Test_Val_FSC_147.json").write_text(json.dumps({"test": [f"{k}.jpg" for k in (1, 2, 3)]}))
    (root / "ImageClasses_FSC147.txt").write_text(names)


def write_shanghaitech(root: Path, part: str) -> None:
    for split in ("train_data", "test_data"):
        for index, (number, size_hw) in enumerate(zip(COUNTS, SIZES, strict=True), 1):
            dots = write_image(root / f"part_{part}/{split}/images/IMG_{index}.jpg", number, size_hw)
            info = np.empty((1, 1), object)
            info[0, 0] = {"location": np.array(dots).reshape(-1, 2), "number": float(number)}
            target = root / f"part_{part}/{split}/ground-truth/GT_IMG_{index}.mat"
            target.parent.mkdir(parents=True, exist_ok=True)
            scipy.io.savemat(target, {"image_info": info})


def config_for(path: Path, root: Path, **options: Any) -> Any:
    """The config with its data below `root`, three images of them."""
    config = load_config(path, SMALL | options)
    dataset = config.test_dataloader.dataset
    if dataset.type == "FSC147Dataset":
        write_fsc147(root)
    elif dataset.type == "ShanghaiTechDataset":
        write_shanghaitech(root, dataset.part)
    else:
        dataset.length = 3
        return config
    dataset.data_root = str(root)
    return config


def red_is_the_number(
    self: Inferencer, images: Any, classes: Any, *, tasks: Any, **_: Any
) -> Iterator[Answers]:
    """A perfect counter of the pictures above."""
    (name,) = classes
    assert tasks == ("count",)
    for image in images:
        number = float(image[0, 0, 0])
        found = ClassCount(name, 0, number, np.full((1, 1), number, np.float32), np.zeros((0, 2), np.float32))
        yield Answers(image.shape[:2], (name,), counts=Counts((found,), image.shape[:2]))


@pytest.mark.usefixtures("tiny_clip")
@pytest.mark.parametrize("path", [p for p in CONFIGS if "scenes" not in p.stem], ids=lambda path: path.stem)
def test_perfect_counts_have_no_error(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inferencer, "answers", red_is_the_number)
    metrics = run_test(prepare(config_for(path, tmp_path), work_dir=tmp_path / "work"))
    assert metrics["MAE"] == metrics["RMSE"] == metrics["bias"] == 0
    mean = sum(COUNTS) / 3
    assert metrics["mean-count MAE"] == pytest.approx(sum(abs(n - mean) for n in COUNTS) / 3)
    assert {"MAE 0", "MAE 1-4", "MAE 5-9"} <= set(metrics)


@pytest.mark.usefixtures("tiny_clip")
@pytest.mark.parametrize("stem", ["clip-surgery_vitb16_fsc147", "proxyclip_bundled_scenes"])
def test_the_real_path_runs(stem: str, tmp_path: Path) -> None:
    options = {"model.method.short_side": 64, "model.templates": "none", "test_evaluator.mean_count": 4.0}
    if stem.startswith("proxyclip"):
        options |= {"model.method.crop": None, "model.method.stride": None}
    config = config_for(REPO / "configs" / "counting" / f"{stem}.py", tmp_path, **options)
    config = prepare(config, work_dir=tmp_path / "work", limit=2, show_dir=tmp_path / "show")
    metrics = run_test(config)
    assert len(list((tmp_path / "show").rglob("*.png"))) == 2
    assert np.isfinite([metrics["MAE"], metrics["RMSE"], metrics["mean-count MAE"]]).all()
    if "fsc147" in stem:
        assert metrics["mean-count MAE"] == pytest.approx((abs(COUNTS[0] - 4) + abs(COUNTS[1] - 4)) / 2)


@pytest.mark.parametrize(
    ("stem", "shown"),
    [
        ("proxyclip_vitb16_fsc147", "images_384_VarV2/2.jpg"),
        ("clip-surgery_vitb16_shanghaitech_b", "GT_IMG_1.mat"),
    ],
)
def test_a_wrong_data_root_shows_the_layout(stem: str, shown: str, tmp_path: Path) -> None:
    config = load_config(REPO / "configs" / "counting" / f"{stem}.py")
    config.test_dataloader.dataset.data_root = str(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=rf"(?s)nowhere.*data_root=FOLDER.*{shown}"):
        prepare(config, work_dir=tmp_path)
    config.test_dataloader.dataset.data_root = str(tmp_path)  # there, but of something else
    dataset = dict(config.test_dataloader.dataset)
    init_default_scope("ovseg")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        DATASETS.build(dataset)
    with pytest.raises(ConfigError, match="needs data_root"):
        DATASETS.build(dataset | {"data_root": None})


def test_scenes_count_one_kind_or_everything() -> None:
    init_default_scope("ovseg")
    pipeline = [dict(type="RenderCountedScene"), dict(type="PackCounts")]
    options = dict(type="ScenesCountingDataset", split="val", length=6, size_hw=(112, 144), pipeline=pipeline)
    kinds = [DATASETS.build(options)[k]["data_samples"] for k in range(6)]
    things = [DATASETS.build(options | {"everything": "thing"})[k]["data_samples"] for k in range(6)]
    assert all(sample.name == "thing" for sample in things)
    assert all(len(kind.gt_points) <= len(all_.gt_points) for kind, all_ in zip(kinds, things, strict=True))
    assert any(len(kind.gt_points) < len(all_.gt_points) for kind, all_ in zip(kinds, things, strict=True))
    assert all((sample.gt_points < torch.tensor([144, 112])).all() for sample in things)
    from ovseg.scenes import SceneSet

    assert {sample.name for sample in kinds} <= set(SceneSet("val").classes)


@pytest.mark.usefixtures("tiny_clip")
def test_what_a_counter_refuses(tmp_path: Path) -> None:
    init_default_scope("ovseg")
    base = dict(type="OvCounter", method=dict(type="clip", short_side=64), templates="none")
    counter = MODELS.build(base | {"vocabulary": ["cat", "dog"]})
    config = config_for(CONFIGS[0].with_name("proxyclip_bundled_scenes.py"), tmp_path)
    sample = DATASETS.build(config.test_dataloader.dataset)[0]
    batch = {"inputs": [sample["inputs"]], "data_samples": [sample["data_samples"]]}
    sample["data_samples"].set_metainfo({"name": "cat"})
    (found,) = counter(**batch, mode="predict")
    assert found.pred_count.name == "cat"
    pixels = sample["inputs"].flip(0).permute(1, 2, 0).numpy()
    (answer,) = counter.predictor().answers([pixels], ["cat", "dog"], tasks="count", templates="none")
    assert answer.counts["cat"].number == found.pred_count.number
    sample["data_samples"].set_metainfo({"name": "boat"})
    with pytest.raises(ConfigError, match="has no 'boat'"):
        counter(**batch, mode="predict")
    with pytest.raises(ConfigError, match="training-free"):
        counter(**batch, mode="loss")
    with pytest.raises(ConfigError, match=r"model\.head"):
        MODELS.build(base | {"head": {"prominenz": 0.3}})


def test_metric_agrees_with_the_core() -> None:
    metric = CountingMetric(mean_count=2.0, prefix="count")
    for number, truth in ((3.5, 3), (9.0, 12)):
        count = ClassCount("x", 0, number, np.array([[number]], np.float32), np.zeros((0, 2), np.float32))
        metric.process(None, [{"pred_count": count, "gt_points": torch.zeros(truth, 2)}])
    figures = metric.evaluate(2)
    assert figures["count/MAE"] == pytest.approx(1.75)
    assert figures["count/RMSE"] == pytest.approx(((0.25 + 9) / 2) ** 0.5)
    assert figures["count/mean-count MAE"] == pytest.approx(5.5)
    assert figures["count/MAE 10-19"] == pytest.approx(3.0)


@pytest.mark.parametrize("path", CONFIGS + EBC, ids=lambda path: path.stem)
def test_configs_are_short_and_name_what_exists(path: Path) -> None:
    config = load_config(path)
    assert config.default_scope == "ovseg"
    assert config.model.type == ("EbcCounterModel" if path in EBC else "OvCounter")
    assert config.test_evaluator.type == "CountingMetric"


def small_ebc(work_dir: Path, **options: Any) -> Any:
    """The scenes config on tiny networks, two steps."""
    changes = TWO_STEPS | {
        "model.bins.block_px": 16,
        "model.num_prompts": 2,
        "val_dataloader.dataset.size_hw": (64, 80),
        "train_dataloader.dataset.size_hw": (64, 80),
        "default_hooks.checkpoint.interval": 2,
    }
    config = load_config(REPO / "configs/clip-ebc/clip-ebc_bundled_scenes.py", changes | options)
    config.train_dataloader.dataset.pipeline[1].crop_hw = (32, 48)
    return prepare_training(config, work_dir=work_dir)


@pytest.fixture
def tiny_ebc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovseg.mm.count_trainer.load_clip", load_tiny_clip)


@pytest.mark.usefixtures("tiny_ebc")
def test_training_writes_a_small_checkpoint_that_answers(tmp_path: Path) -> None:
    trained = run_training(small_ebc(tmp_path / "work"))
    assert {"MAE", "RMSE", "mean-count MAE"} <= set(trained.metrics)
    saved = torch.load(trained.checkpoint, weights_only=True)
    names = set(saved["state_dict"])
    assert "counter.encode.prompts" in names
    assert "counter.head.log_scale" in names
    assert not any("encode.encoder" in name for name in names)
    config = tmp_path / "config.py"
    config.write_text(
        f"_base_ = '{REPO}/configs/clip-ebc/clip-ebc_bundled_scenes.py'\n"
        "model = dict(bins=dict(block_px=16), num_prompts=2)\n"
    )
    infer = inferencer_from_config(config, checkpoint=trained.checkpoint, classes="things", device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    with pytest.raises(ConfigError, match="no threshold"):
        inferencer_from_config(load_config(config, {"model.head.threshold": 0.3}), device="cpu")
    config_with_head = load_config(config, {"model.head.keep_scores": False})  # as tools/infer.py says it
    assert inferencer_from_config(config_with_head, device="cpu").names == ("thing", "things")
    (answer,) = infer.answers([image], "things", tasks=("count",))
    untrained = inferencer_from_config(config, device="cpu")
    (before,) = untrained.answers([image], "things")
    assert answer.counts["things"].number != pytest.approx(before.counts["things"].number, abs=1e-6)
    about = infer.describe()
    assert about["parts"]["counter"]["name"] == trained.checkpoint.name
    with pytest.raises(VocabularyError, match="'thing'"):
        inferencer_from_config(config, checkpoint=trained.checkpoint, classes="cat", device="cpu")


@pytest.mark.usefixtures("tiny_ebc")
@pytest.mark.parametrize("kind", ["mae", "dmcount"])
def test_loss_is_that_of_the_core(kind: str) -> None:
    from ovseg.training.count_losses import dace_loss

    config = load_config(REPO / "configs/clip-ebc/clip-ebc_vitb16_shanghaitech_a.py")
    model = MODELS.build(ConfigDict(config.model | {"count_loss": kind}))
    inputs = list(torch.randint(256, (2, 3, 32, 48), dtype=torch.uint8))
    points = [torch.tensor([[3.0, 4.0], [40.0, 20.0]]), torch.zeros(0, 2)]
    samples = [ConfigDict(gt_points=each) for each in points]
    model.train()
    assert model.counter.head.decoder.training
    assert not model.counter.encode.encoder.training
    model.counter.head.eval()
    losses = model(inputs, samples, mode="loss")
    rgb = torch.stack(inputs).flip(1).float() / 255
    blocks = model.counter.head(model.counter.encode(rgb))
    wanted, terms = dace_loss(blocks.logits, blocks.density, points, model.counter.head.bins, count_loss=kind)
    torch.testing.assert_close(losses["loss_dace"], wanted)
    assert set(losses) == {"loss_dace", *terms}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(inputs, samples, mode="loss")["loss_dace"]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, wanted, rtol=0.05, atol=0.5)


@pytest.mark.usefixtures("tiny_ebc")
def test_published_schedule() -> None:
    config = load_config(REPO / "configs/clip-ebc/clip-ebc_rn50_shanghaitech_b.py")
    assert config.model.bins == {"dataset": "shb", "block_px": 8, "most": 4}
    assert config.train_dataloader.batch_size == 8
    assert config.train_cfg.max_epochs == 2600
    assert config.test_dataloader.dataset.part == "B"

    def rates(name: str) -> list[float]:
        from mmengine.optim.scheduler.lr_scheduler import CosineRestartLR, LinearLR

        config = load_config(REPO / f"configs/clip-ebc/{name}.py")
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.Adam([parameter], lr=config.optim_wrapper.optimizer.lr)
        kinds = {"LinearLR": LinearLR, "CosineRestartLR": CosineRestartLR}
        made = []
        for each in config.param_scheduler:
            options = dict(each)
            made.append(kinds[options.pop("type")](optimizer, **options))
        found = []
        for _ in range(67):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            for scheduler in made:
                scheduler.step()
        return found

    resnet, vit = rates("clip-ebc_rn50_shanghaitech_a"), rates("clip-ebc_vitb16_shanghaitech_a")
    assert resnet[0] == pytest.approx(1e-6)
    assert vit[0] == pytest.approx(1e-3)
    for found in (resnet, vit):  # restarts after 50, 55 and 65 epochs
        assert [found[k] for k in (50, 55, 65)] == pytest.approx([1e-4] * 3, rel=0.03)
        assert found[54] < 2e-5
        assert found[64] < 1e-5


@pytest.mark.usefixtures("tiny_ebc")
def test_bad_settings_are_named(tmp_path: Path) -> None:
    model = dict(load_config(EBC[0]).model)
    with pytest.raises(ConfigError, match=r"model\.bins"):
        MODELS.build(ConfigDict(model | {"bins": {"mots": 2}}))
    with pytest.raises(ConfigError, match="'own', got 'clip'"):
        MODELS.build(ConfigDict(model | {"statistics": "clip"}))
    with pytest.raises(ConfigError, match="float32"):
        MODELS.build(ConfigDict(model | {"dtype": "bf16"}))
    built = MODELS.build(ConfigDict(model))
    torch.save({"state_dict": built.state_dict()}, tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=r"not written by tools/train\.py"):
        built.load_trained(tmp_path / "bare.pth")


def test_metafiles_name_every_config() -> None:
    for folder in ("counting", "clip-ebc"):
        meta = yaml.safe_load((REPO / "configs" / folder / "metafile.yml").read_text())
        named = {model["Config"] for model in meta["Models"]}
        assert named == {str(p.relative_to(REPO)) for p in CONFIGS + EBC if p.parent.name == folder}
        for model in meta["Models"]:
            for result in model.get("Results", []):
                assert "paper" in result["Source"], "a figure that is not ours says so"
