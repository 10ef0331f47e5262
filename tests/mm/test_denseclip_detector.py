"""DenseCLIP with mmdet's detectors on three images in COCO's form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from support import random_image

from mm.conftest import REPO
from mm.detection_layouts import write_coco
from mm.test_denseclip import tiny
from ovseg.errors import ConfigError, VocabularyError
from ovseg.mm.build import plain
from ovseg.mm.registry import DATASETS, MODELS
from ovseg.rle import decode_mask

NAMES = ("cat", "dog", "traffic light")
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "mmdet.LoadAnnotations", "with_bbox": True, "with_mask": True},
    {"type": "mmdet.Resize", "scale": (128, 96), "keep_ratio": True},
    {"type": "mmdet.PackDetInputs"},
]


@pytest.fixture(autouse=True)
def _tiny_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovseg.mm.denseclip_detector.load_clip", lambda name: tiny(name, resnet=True))
    init_default_scope("ovseg")


def detector(name: str, **changes: Any) -> Any:
    """The shipped one with fewer channels."""
    torch.manual_seed(0)
    base = Config.fromfile(REPO / f"configs/_base_/methods/denseclip_{name}.py").model
    small = thin(plain(base))
    return MODELS.build(
        small
        | {
            "classes": list(NAMES),
            "encoder": "tiny",
            "scale": (96, 128),
            "matching": {"contexts": 4, "decoder": {"width": 16, "heads": 2, "layers": 1}},
        }
        | changes
    )


def thin(config: Any) -> Any:
    if isinstance(config, dict):
        return {
            key: 16 if value in (256, 1024) and key != "num" else thin(value) for key, value in config.items()
        }
    return [thin(each) for each in config] if isinstance(config, list) else config


@pytest.fixture
def samples(tmp_path: Path) -> list[dict[str, Any]]:
    import ovseg.mm.detection  # noqa: F401  # registers the data sets

    write_coco(tmp_path, NAMES, file="a.json", folders=["img"] * 3)
    dataset = DATASETS.build(
        {
            "type": "OvCocoDataset",
            "vocabulary": list(NAMES),
            "data_root": str(tmp_path),
            "ann_file": "a.json",
            "data_prefix": {"img": "img/"},
            "pipeline": PIPELINE,
        }
    )
    return [dataset[index] for index in range(3)]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@pytest.mark.parametrize("name", ["retinanet", "maskrcnn"])
def test_a_step_and_a_prediction(name: str, samples: list[dict[str, Any]]) -> None:
    model = detector(name).train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-3)
    inputs, truth = [each["inputs"] for each in samples], [each["data_samples"] for each in samples]

    def step() -> float:
        losses = model(inputs, truth, mode="loss")
        total, _ = model.parse_losses(losses)
        assert losses["loss_score_map"] > 0
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return float(total.detach())

    first = step()
    # a 3x3 box head of a level without any positive anchor may stay untouched, the towers may not
    assert all(each.grad is not None for each in model.net.parameters())
    assert np.isfinite(first)
    assert np.isfinite(step())

    model.eval()
    image = random_image(60, 80)
    packed = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)
    [found] = model([packed], mode="predict")
    boxes = found.pred_instances.bboxes
    assert boxes.shape[1] == 4
    assert not len(boxes) or (boxes[:, 2].max() <= 80 and boxes[:, 3].max() <= 60)


def test_masks_and_chosen_classes() -> None:
    model = detector("maskrcnn").eval()
    model.detector.roi_head.test_cfg.score_thr = 0.0
    image = random_image(60, 80)
    everything = model.detect(image)
    assert len(everything)
    assert decode_mask(everything.masks[0]).shape == (60, 80)
    ask = model.predictor()
    [answer] = ask.answers([image], "Traffic light, cat")
    kept = everything.select(everything.labels != 1)
    assert len(answer.detections) == len(kept)
    assert set(answer.detections.labels[kept.labels == 2].tolist()) <= {0}
    assert answer.detections.names == ("Traffic light", "cat")
    assert ask.bank("dog")[1].embeddings.shape == (1, 16)
    with pytest.raises(VocabularyError, match="'zebra'"):
        ask.bank("zebra, dog")
    with pytest.raises(ConfigError, match="detect"):
        ask.answers([image], "dog", tasks="segment")


def test_resizing_is_undone() -> None:
    """The same picture at twice the size gives boxes at twice the place."""
    model = detector("retinanet").eval()
    model.detector.bbox_head.test_cfg.score_thr = 0.0
    image = random_image(48, 64)
    small, large = model.detect(image), model.detect(np.kron(image, np.ones((2, 2, 1), np.uint8)))
    assert len(small)
    assert small.image_hw == (48, 64)
    assert large.boxes_xyxy[:, 2].max() > 64
    assert large.boxes_xyxy[:, 2].max() <= 128


def test_backbone_alone_in_a_detector_of_mmdet() -> None:
    """mmdet's own RetinaNet, by name, without the score map's loss."""
    built = MODELS.build({"type": "DenseClipBackbone", "classes": list(NAMES), "encoder": "tiny"})
    levels = built(torch.randn(1, 3, 64, 96))
    assert [each.shape[1] for each in levels] == built.net.channels
    assert built.net.matching.appended == "logits"
    matched = built.net(torch.randn(1, 3, 64, 96))
    assert built(matched) is matched.levels


def test_small_checkpoint() -> None:
    model = detector("retinanet")
    state = model.state_dict()
    assert all(name.startswith("detector.") for name in state)
    assert not any("token_embedding" in name for name in state)
    again = detector("retinanet")
    again.load_trained({"meta": {"ovseg": model.describe()}, "state_dict": state}, "x.pth")
