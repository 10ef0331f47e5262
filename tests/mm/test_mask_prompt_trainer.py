"""A mask-adapted CLIP under the Runner's protocol: datasets, losses, what is trained, what it answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from mm.conftest import REPO
from ovseg.detection_results import Detections
from ovseg.errors import CheckpointError, ConfigError
from ovseg.masked_look import MaskedLook
from ovseg.mm import load_config
from ovseg.mm.mask_prompt_trainer import MaskPromptTrainer
from ovseg.mm.region_datasets import RegionAccuracy
from ovseg.mm.registry import DATASETS, MODELS
from ovseg.rle import encode_mask

FAMILY = sorted((REPO / "configs" / "mask-adapted-clip").glob("*.py"))
WORDS = ["cat", "red ball", "grass"]


@pytest.fixture(autouse=True)
def _scope() -> None:
    init_default_scope("ovseg")


def dataset(root: Path, **changes: Any) -> Any:
    """Three images in COCO's form: two objects, one with a noun of its own, and none."""
    rng = np.random.default_rng(0)
    box = [4, 6, 30, 20]
    ring = [4, 6, 34, 6, 4, 26]
    objects = [
        {"image_id": 1, "bbox": box, "segmentation": [ring], "category_id": 7},
        {"image_id": 1, "bbox": [40, 10, 12, 30], "segmentation": [[40, 10, 52, 10, 52, 40, 40, 40]]}
        | {"noun": "red ball"},
        {"image_id": 2, "bbox": box, "segmentation": [ring], "category_id": 7},
        {"image_id": 2, "bbox": box, "segmentation": [ring], "category_id": 7, "iscrowd": 1},
    ]
    images = [{"id": k, "file_name": f"{k}.png", "height": 48, "width": 64} for k in (1, 2, 3)]
    told = {"images": images, "annotations": objects, "categories": [{"id": 7, "name": "cat"}]}
    (root / "regions.json").write_text(json.dumps(told))
    for k in (1, 2, 3):
        cv2.imwrite(str(root / f"{k}.png"), rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadRegions")]
    pipeline.append(dict(type="PackRegionCrops", side=64))
    options = dict(type="CocoRegions", data_root=str(root), ann_file="regions.json", pipeline=pipeline)
    return DATASETS.build(options | changes)


def trainer(**changes: Any) -> MaskPromptTrainer:
    options = dict(type="MaskPromptTrainer", vocabulary=WORDS, templates="simple", proposals=everything)
    return MODELS.build(options | changes)


def everything(image: np.ndarray, path: str | None = None) -> Detections:
    boxes = np.array([[0, 0, 20, 30], [30, 8, 60, 40]], np.float32)
    masks = np.zeros((2, *image.shape[:2]), bool)
    masks[0, :30, :20], masks[1, 8:40, 30:60] = np.tri(30, 20), np.tri(32, 30)
    rles = tuple(encode_mask(mask) for mask in masks)
    return Detections(
        boxes, np.zeros(2, np.int64), np.ones(2, np.float32), ("object",), image.shape[:2], rles
    )


def test_regions_of_a_file_in_cocos_form(tmp_path: Path) -> None:
    found = dataset(tmp_path)
    assert len(found) == 2
    assert found.metainfo["classes"] == ("cat", "red ball")
    sample = found[0]
    assert sample["inputs"]["crops"].shape == (2, 3, 64, 64)
    shares = sample["inputs"]["masks"].float().mean(dim=(1, 2)).tolist()
    assert shares == pytest.approx([0.5, 1.0], abs=0.1)  # a triangle and a box, both in tight crops
    assert sample["data_samples"].nouns == ("cat", "red ball")
    assert sample["data_samples"].gt_labels.tolist() == [0, 1]
    image = cv2.imread(str(tmp_path / "1.png"))
    crop = cv2.resize(sample["inputs"]["crops"][1].numpy().transpose(1, 2, 0), (12, 30))
    assert np.abs(crop.astype(float) - image[10:40, 40:52]).mean() < 40
    (tmp_path / "regions.json").write_text('{"images": []}')
    with pytest.raises(ConfigError, match="no file of regions in COCO's form"):
        DATASETS.build(dict(type="CocoRegions", data_root=str(tmp_path), ann_file="regions.json"))


@pytest.mark.usefixtures("tiny_clip")
@pytest.mark.parametrize("learns", ["prompts", "tower", "both"])
def test_learns_what_it_says(tmp_path: Path, learns: str) -> None:
    model = trainer(learns=learns)
    batch = pseudo_collate([dataset(tmp_path)[k] for k in (0, 1)])
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.01)
    dense = {name: value.clone() for name, value in model.encoder.visual.state_dict().items()}
    losses = []
    model.train()
    for _ in range(4):
        loss = model(**batch, mode="loss")["loss_pairs"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not model.encoder.visual.training
    state = model.state_dict()
    assert ("crops.prompts" in state) == (learns != "tower")
    assert any("visual" in name for name in state) == (learns != "prompts")
    after = model.encoder.visual.state_dict()
    assert all(torch.equal(after[name], value) for name, value in dense.items())  # dense features stay


@pytest.mark.usefixtures("tiny_clip")
def test_predicts_labels_and_answers_boxes(tmp_path: Path) -> None:
    model = trainer().eval()
    batch = pseudo_collate([dataset(tmp_path)[k] for k in (0, 1)])
    samples = model(**batch, mode="predict")
    assert [len(each.pred_labels) for each in samples] == [2, 1]
    metric = RegionAccuracy()
    metric.process(batch, [each.to_dict() for each in samples])
    figures = metric.compute_metrics(metric.results)
    right = torch.cat([each.pred_labels == each.gt_labels for each in samples]).float().mean()
    assert figures["accuracy"] == pytest.approx(100 * float(right))
    image = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    predictor = model.predictor()
    (answer,) = predictor.answers([image], WORDS, tasks=("detect", "segment"))
    assert answer.detections is not None
    assert answer.segmentation is not None
    assert 1 <= len(answer.detections) <= 2
    with torch.no_grad():
        model.crops.prompts += 5 * torch.randn_like(model.crops.prompts)
    (other,) = predictor.answers([image], WORDS, tasks=("detect",))
    assert predictor.describe()["parts"]["crops"]["name"] == "untrained"
    assert not np.array_equal(other.detections.scores, answer.detections.scores)
    regions = everything(image)
    look = MaskedLook(model.crops)
    assert torch.allclose(look(image, regions), MaskedLook(model.crops, at_once=1)(image, regions), atol=1e-5)
    assert look(image, regions.select(np.zeros(2, bool))).shape == (0, 16)


@pytest.mark.usefixtures("tiny_clip")
def test_second_stage_begins_from_the_first(tmp_path: Path) -> None:
    first = trainer(learns="tower")
    with torch.no_grad():
        first.crops.encoder.visual.proj += 1
    path = tmp_path / "tower.pth"
    torch.save({"meta": {"ovseg": first.describe()}, "state_dict": first.state_dict()}, path)
    second = trainer(learns="prompts", tower=str(path))
    assert torch.equal(second.crops.encoder.visual.proj, first.crops.encoder.visual.proj)
    assert not torch.equal(second.encoder.visual.proj, first.crops.encoder.visual.proj)
    assert second.describe()["tower_sha256"] != second.describe()["weights_sha256"]
    assert list(second.state_dict()) == ["crops.prompts"]
    torch.save({"meta": {"ovseg": {}}, "state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="holds no tower"):
        trainer(learns="prompts", tower=str(path))


@pytest.mark.usefixtures("tiny_clip")
@pytest.mark.parametrize("path", FAMILY, ids=lambda path: path.stem)
def test_family_builds(path: Path) -> None:
    config = load_config(path)
    config.model.setdefault("vocabulary", WORDS)
    model = MODELS.build(ConfigDict({**config.model, "vocabulary": WORDS}))
    assert isinstance(model, MaskPromptTrainer)
    assert config.train_dataloader.dataset.type in ("CocoRegions", "SceneRegions")
