"""Anomaly benchmarks through mmengine's Runner: layouts, model, metric, configs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmengine.registry import DefaultScope
from mmseg.structures import SegDataSample

from mm.anomaly_layouts import BAD_LEVEL, GOOD_LEVEL, HW, WRITERS, damage, write_mvtec
from mm.conftest import ALL_CONFIGS, REPO, load_tiny_clip
from mm.test_configs import own_and_inherited, repeated
from ovseg.anomaly_build import MEMORY, WORD_METHODS, build_anomaly_inferencer
from ovseg.anomaly_inferencer import AnomalyInferencer
from ovseg.anomaly_results import AnomalyMap
from ovseg.answers import Answers
from ovseg.errors import CheckpointError, ConfigError
from ovseg.methods.anomalyclip import ObjectPrompts
from ovseg.metrics.anomaly import AnomalyMetrics
from ovseg.mm import load_config
from ovseg.mm.anomaly_metric import FIGURES, AnomalyMetric
from ovseg.mm.registry import DATASETS, MODELS
from ovseg.mm.runner import prepare, run_test

CONFIGS = [path for path in ALL_CONFIGS if path.parent.name == "anomaly"]
ONE_PROCESS = {"test_dataloader.num_workers": 0, "test_dataloader.persistent_workers": False}
SHORT = {"normal": ("{}",), "abnormal": ("damaged {}",), "templates": ("a {}",)}


@pytest.fixture(autouse=True)
def _tiny(tiny_clip: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovseg.anomaly_build.load_clip", load_tiny_clip)


def config_of(stem: str, root: Path | None = None, **options: Any) -> Any:
    config = load_config(REPO / "configs" / "anomaly" / f"{stem}.py", ONE_PROCESS | options)
    if root is not None:
        config.test_dataloader.dataset.data_root = str(root)
    return config


def dataset_of(config: Any) -> Any:
    with DefaultScope.overwrite_default_scope("ovseg"):
        return DATASETS.build(config.test_dataloader.dataset)


def brightness(self: AnomalyInferencer, images: Any, classes: Any = "object", **_: Any) -> Iterator[Answers]:
    """A perfect detector for `anomaly_layouts`."""
    for image in images:
        heat = (image[..., 0] > (GOOD_LEVEL + BAD_LEVEL) // 2).astype(np.float32)
        yield Answers(image.shape[:2], (classes,), anomaly=AnomalyMap(heat, float(heat.max())))


@pytest.mark.parametrize(
    ("layout", "dataset"), [("mvtec", "mvtec-ad"), ("visa", "visa"), ("visa converted", "visa")]
)
def test_perfect_prediction_is_100(
    layout: str, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnomalyInferencer, "answers", brightness)
    WRITERS[layout](tmp_path / "data")
    config = config_of(f"winclip_vitb16-plus_{dataset}", tmp_path / "data", **{"test_evaluator.size": None})
    report = tmp_path / "report.json"
    config.test_evaluator.report_file = str(report)
    metrics = run_test(prepare(config, work_dir=tmp_path / "work", out=tmp_path / "maps"))
    assert set(metrics) == {f"anomaly/{name}" for name in FIGURES}
    for name, value in metrics.items():
        if name != "anomaly/aupro_200":  # its 200 steps leave no second point on a perfect curve
            assert value == pytest.approx(100.0), name
    by_category = json.loads(report.read_text())
    assert set(by_category) == ({"carpet", "metal_nut"} if layout == "mvtec" else {"candle"})
    assert sum(each["images"] for each in by_category.values()) == (5 if layout == "mvtec" else 3)
    maps = sorted((tmp_path / "maps").rglob("*.tiff"))
    assert len(maps) == sum(each["images"] for each in by_category.values())
    bad = next(each for each in maps if each.parent.name in ("scratch", "Anomaly", "bad"))
    np.testing.assert_array_equal(cv2.imread(str(bad), cv2.IMREAD_UNCHANGED), damage())


def test_wrong_prediction_is_not_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def inverted(self: Any, images: Any, classes: Any = "object", **_: Any) -> Iterator[Answers]:
        for each in brightness(self, images, classes):
            heat = 1 - each.anomaly.map
            yield Answers(each.image_hw, each.names, anomaly=AnomalyMap(heat, -each.anomaly.score))

    monkeypatch.setattr(AnomalyInferencer, "answers", inverted)
    write_mvtec(tmp_path)
    metrics = run_test(
        prepare(config_of("winclip_vitb16-plus_mvtec-ad", tmp_path), work_dir=tmp_path / "work")
    )
    assert metrics["anomaly/image_auroc"] == metrics["anomaly/pixel_auroc"] == 0.0


@pytest.mark.parametrize(
    ("stem", "layout", "options"),
    [
        ("winclip_vitb16-plus_mvtec-ad", "mvtec", {"model.method.size": 64, "model.prompts": SHORT}),
        ("winclip-4shot_vitb16-plus_visa", "visa", {"model.method.size": 64, "model.prompts": SHORT}),
        (
            "anovl_vitb16-plus_visa",
            "visa converted",
            {"model.method.size": 64, "model.method.with_copies": False, "model.prompts": SHORT},
        ),
        ("patch-memory-4shot_dinov2-vits14_mvtec-ad", "mvtec", {"model.method.short_side": 64}),
        ("words-sclip_vitb16_visa", "visa", {"model.method.short_side": 64}),
    ],
)
def test_the_real_path_runs(stem: str, layout: str, options: dict[str, Any], tmp_path: Path) -> None:
    WRITERS[layout](tmp_path / "data")
    count = 5 if layout == "mvtec" else 3
    shots = {"test_dataloader.dataset.shots": 2} if "4shot" in stem else {}
    config = config_of(stem, tmp_path / "data", **options, **shots)
    config = prepare(config, work_dir=tmp_path / "work", show_dir=tmp_path / "show", limit=count)
    metrics = run_test(config)
    assert all(0 <= metrics[f"anomaly/{name}"] <= 100 for name in FIGURES if name != "aupro_200")
    assert len(list((tmp_path / "show").rglob("*.png"))) == count
    if MEMORY in stem:  # nothing is easier than a bright spot on grey
        assert metrics["anomaly/image_auroc"] == 100.0
        assert metrics["anomaly/pixel_auroc"] > 80


def test_scenes_run(tmp_path: Path) -> None:
    options = {
        "test_dataloader.dataset.length": 3,
        "test_dataloader.dataset.categories": ["clock"],
        "test_dataloader.dataset.size_hw": (64, 80),
        "test_dataloader.dataset.shots": 1,
        "model.method.short_side": 64,
    }
    config = config_of("patch-memory-4shot_bundled_scenes", **options)
    metrics = run_test(prepare(config, work_dir=tmp_path))
    assert 0 <= metrics["anomaly/pixel_auroc"] <= 100
    dataset = dataset_of(config)
    item = dataset[0]
    sample = item["data_samples"]
    assert item["inputs"].shape == (3, 64, 80)
    assert bool(sample.gt_sem_seg.data.any()) == (sample.defect != "good")
    assert sample.good[0]().shape == (64, 80, 3)


def test_shots_and_seeds(tmp_path: Path) -> None:
    write_mvtec(tmp_path)
    options = {"data_root": str(tmp_path), "pipeline": [], "type": "MVTecADDataset"}

    def good(**more: Any) -> list[str]:
        return [Path(each).name for each in DATASETS.build(options | more).get_data_info(0)["good"]]

    assert good() == []
    assert good(shots=None) == ["000.png", "001.png", "002.png"]
    assert good(shots=2) == ["000.png", "002.png"]
    assert good(shots=2, shot_seed=0) == good(shots=2, shot_seed=0)
    assert len({tuple(good(shots=1, shot_seed=seed)) for seed in range(8)}) > 1
    with pytest.raises(ConfigError, match="there are 3"):
        good(shots=4)


@pytest.mark.parametrize(("kind", "category"), [("MVTecADDataset", "metal_nut"), ("VisADataset", "candle")])
def test_wrong_folders_show_the_layout(kind: str, category: str, tmp_path: Path) -> None:
    options = {"type": kind, "data_root": str(tmp_path / "no"), "pipeline": []}
    with pytest.raises(ConfigError, match=r"(?s)data_root=FOLDER.*expected:.*train.*ground_truth"):
        DATASETS.build(options)
    (tmp_path / "no" / category / "test" / "bad").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"no test image"):
        DATASETS.build(options)
    np_image = np.zeros((*HW, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "no" / category / "test" / "bad" / "7.png"), np_image)
    with pytest.raises(ConfigError, match=r"(?s)no mask for .*7\.png.*7_mask\.png"):
        DATASETS.build(options)
    config = config_of("winclip_vitb16-plus_mvtec-ad", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"(?s)nowhere.*bottle/ground_truth"):
        prepare(config, work_dir=tmp_path)


def test_masks_of_another_size_are_refused(tmp_path: Path) -> None:
    write_mvtec(tmp_path)
    cv2.imwrite(str(tmp_path / "carpet/ground_truth/scratch/000_mask.png"), np.full((8, 8), 255, np.uint8))
    dataset = dataset_of(config_of("winclip_vitb16-plus_mvtec-ad", tmp_path))
    with pytest.raises(ConfigError, match=r"8x8.*48x64"):
        [dataset[index] for index in range(len(dataset))]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_builds(path: Path) -> None:
    config = load_config(path)
    kind = config.model.method.type
    assert path.stem.split("_")[0] in (kind, f"{kind}-4shot", f"words-{kind}")
    assert len(path.read_text().splitlines()) <= 10
    own, inherited = own_and_inherited(path)
    assert repeated(own, inherited) == []
    model = MODELS.build(config.model)
    if kind == "anomalyclip":
        with pytest.raises(ConfigError, match="checkpoint after the config"):
            model.predictor()
    else:
        assert model.predictor().describe()["method"] == kind
    size = config.test_evaluator.get("size")
    published = WORD_METHODS[kind][1] if kind in WORD_METHODS else None
    assert size == (None if path.stem.endswith("_scenes") else published)
    assert (config.test_dataloader.dataset.get("shots", 0) == 4) == ("4shot" in path.stem)


def test_all_configs_are_there() -> None:
    found = {tuple(path.stem.split("_")[::2]) for path in CONFIGS}
    few = {
        (name, data)
        for name in ("winclip-4shot", "patch-memory-4shot")
        for data in ("mvtec-ad", "visa", "scenes")
    }
    words = {
        (name, data)
        for name in ("winclip", "anovl", "words-sclip")
        for data in ("mvtec-ad", "visa", "scenes")
    }
    assert found == few | words | {("anomalyclip", "mvtec-ad"), ("anomalyclip", "visa")}
    meta = yaml.safe_load((REPO / "configs" / "anomaly" / "metafile.yml").read_text())
    assert {model["Config"] for model in meta["Models"]} == {str(path.relative_to(REPO)) for path in CONFIGS}
    for model in meta["Models"]:
        for result in model.get("Results", []):
            assert "paper" in result["Source"].lower(), "a figure that is not ours says so"


def test_learned_prompts_come_from_the_command_line(tmp_path: Path) -> None:
    write_mvtec(tmp_path / "data")
    torch.manual_seed(0)
    prompts = ObjectPrompts(16, length=4, deep_blocks=0, deep_length=0)
    torch.save({"prompt_learner": prompts.state_dict()}, tmp_path / "prompts.pth")
    config = config_of("anomalyclip_vitl14-336_mvtec-ad", tmp_path / "data", **{"model.method.size": 64})
    metrics = run_test(prepare(config, work_dir=tmp_path / "work", limit=1), tmp_path / "prompts.pth")
    assert set(metrics) == {f"anomaly/{name}" for name in FIGURES}
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no AnomalyCLIP prompts"):
        run_test(prepare(config, work_dir=tmp_path / "work"), tmp_path / "other.pth")


def test_model_equals_the_inferencer() -> None:
    method = {"type": "winclip", "size": 64}
    model = MODELS.build(
        {"type": "OvAnomalyDetector", "method": method, "prompts": SHORT, "names": {"pcb1": "board"}}
    )
    core = build_anomaly_inferencer("winclip", size=64, prompts=SHORT, device="cpu")
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    packed = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
    sample = SegDataSample(metainfo={"category": "pcb1", "good": ()})
    (found,) = model([packed], [sample], mode="predict")
    (wanted,) = core([image], "board")
    np.testing.assert_array_equal(found.pred_anomaly_map.data[0].numpy(), wanted.map)
    assert float(found.pred_score) == pytest.approx(wanted.score)
    (heat,) = model([packed], mode="tensor")
    assert heat.shape == (1, 50, 70)
    with pytest.raises(ConfigError, match="not trained here"):
        model([packed], mode="loss")


def test_good_images_of_no_use_are_refused() -> None:
    model = MODELS.build(
        {"type": "OvAnomalyDetector", "method": {"type": "anovl", "size": 64}, "prompts": SHORT}
    )
    sample = SegDataSample(metainfo={"category": "pill", "good": (np.zeros((64, 64, 3), np.uint8),)})
    with pytest.raises(ConfigError, match="shots=0"):
        model([torch.zeros(3, 64, 64, dtype=torch.uint8)], [sample], mode="predict")
    model = MODELS.build({"type": "OvAnomalyDetector", "method": {"type": MEMORY, "short_side": 64}})
    with pytest.raises(ConfigError, match="good images"):
        model([torch.zeros(3, 64, 64, dtype=torch.uint8)], mode="predict")


def test_metric_equals_the_core() -> None:
    rng = np.random.default_rng(0)
    metric = AnomalyMetric()
    core = {name: AnomalyMetrics() for name in ("a", "b")}
    for index in range(12):
        category, mask = "ab"[index % 2], np.zeros((20, 30), bool)
        if index % 3:
            mask[4 : 5 + index, 6:14] = True
        heat = (rng.random((20, 30)) + 0.4 * mask).astype(np.float32)
        score = float(heat.max())
        sample = {
            "pred_anomaly_map": {"data": torch.from_numpy(heat)[None]},
            "gt_sem_seg": {"data": torch.from_numpy(mask.astype(np.int64))[None]},
            "pred_score": torch.tensor(score),
            "category": category,
            "defect": "hole" if mask.any() else "good",
            "img_path": f"{index}.png",
        }
        metric.process(None, [sample])
        core[category].update(score, bool(mask.any()), heat, mask)
    found = metric.evaluate(12)
    for name in FIGURES:
        wanted = np.mean([100 * getattr(each.report(), name) for each in core.values()])
        assert found[f"anomaly/{name}"] == pytest.approx(wanted, nan_ok=True), name
    assert metric.categories == {}
