"""The stand-in for mmcv's operators: its arithmetic, and mmdet's detectors on top of it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ovseg.mm.detection  # noqa: F401  # puts the stand-in in its place before mmdet is imported
from ovseg.errors import MissingDependencyError
from ovseg.mm import compiled_ops

pytestmark = [
    pytest.mark.skipif(not compiled_ops.install(), reason="mmcv has operators of its own here"),
    pytest.mark.filterwarnings("ignore"),  # mmdet's own
]


def test_installed_once() -> None:
    module = sys.modules[compiled_ops.NAME]
    assert compiled_ops.install()
    assert sys.modules[compiled_ops.NAME] is module


def slow_nms(boxes: np.ndarray, scores: np.ndarray, limit: float, offset: int) -> list[int]:
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable").tolist():
        for other in kept:
            low = np.maximum(boxes[index, :2], boxes[other, :2])
            high = np.minimum(boxes[index, 2:], boxes[other, 2:])
            shared = np.prod(np.maximum(high - low + offset, 0))
            areas = [np.prod(boxes[each, 2:] - boxes[each, :2] + offset) for each in (index, other)]
            if shared / (sum(areas) - shared) > limit:
                break
        else:
            kept.append(index)
    return kept


@pytest.mark.parametrize("offset", [0, 1])
def test_nms(offset: int) -> None:
    from mmcv.ops import nms

    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 20, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 9, (60, 2))], axis=1).astype(np.float32)
    scores = rng.random(60).astype(np.float32)
    found, kept = nms(boxes, scores, 0.3, offset=offset)
    assert kept.tolist() == slow_nms(boxes, scores, 0.3, offset)
    assert 5 < len(kept) < 50
    np.testing.assert_array_equal(found[:, :4], boxes[kept])


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_and_its_gradient(aligned: bool) -> None:
    from mmcv.ops import roi_align

    generator = torch.Generator().manual_seed(1)
    grid = torch.rand(2, 3, 9, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 2, 14, 11], [1, 3, 0.5, 20, 16]], dtype=torch.float64)

    def pooled(features: torch.Tensor) -> torch.Tensor:
        return roi_align(features, rois, (2, 3), 0.5, 2, "avg", aligned)

    found = pooled(grid)
    assert found.shape == (2, 3, 2, 3)
    # two samples by two in each bin, bilinear
    start = rois[0, 1:] * 0.5 - (0.5 if aligned else 0)
    size = (start[2:] - start[:2]).clamp_min(0 if aligned else 1) / torch.tensor([3, 2])
    expected = torch.zeros(3, dtype=torch.float64)
    for row in (0.25, 0.75):
        for column in (0.25, 0.75):
            y, x = start[1] + row * size[1], start[0] + column * size[0]
            place = torch.stack([(x + 0.5) / 11 * 2 - 1, (y + 0.5) / 9 * 2 - 1]).view(1, 1, 1, 2)
            expected += F.grid_sample(grid[:1], place, align_corners=False).view(3) / 4
    torch.testing.assert_close(found[0, :, 0, 0], expected, atol=1e-6, rtol=0)
    weight = torch.rand(found.shape, generator=generator, dtype=torch.float64)
    (slope,) = torch.autograd.grad((found * weight).sum(), grid)
    step = torch.rand(grid.shape, generator=generator, dtype=torch.float64)  # pooling is linear
    torch.testing.assert_close((slope * step).sum(), (pooled(step) * weight).sum(), atol=1e-5, rtol=1e-6)


def test_focal_loss() -> None:
    from mmcv.ops import sigmoid_focal_loss

    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    target, weight = torch.tensor([0, 1, 2, 3, 3, 1]), torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    found = sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, "sum")
    (slope,) = torch.autograd.grad(found, logits)
    truth = F.one_hot(target, 4)[:, :3].to(logits)
    p = logits.sigmoid()
    loss = -truth * 0.25 * (1 - p) ** 2 * p.log() - (1 - truth) * 0.75 * p**2 * (1 - p).log()
    by_row = torch.cat([weight, torch.ones(1, dtype=torch.float64)])[target]
    expected = (loss * by_row[:, None]).sum()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(slope, torch.autograd.grad(expected, logits)[0])


def test_what_is_missing_says_so() -> None:
    from mmcv.ops import DeformConv2d, RoIAlign

    with pytest.raises(
        MissingDependencyError, match="deform_conv_forward is one of mmcv's compiled operators"
    ):
        DeformConv2d(1, 1, 3)(torch.zeros(1, 1, 5, 5), torch.zeros(1, 18, 3, 3))
    with pytest.raises(MissingDependencyError, match="pool_mode 'max'"):
        RoIAlign(2, pool_mode="max")(torch.zeros(1, 1, 5, 5), torch.zeros(1, 5))


ANCHORS = {"type": "mmdet.AnchorGenerator", "ratios": [0.5, 1.0, 2.0]}
CODER = {"type": "mmdet.DeltaXYWHBBoxCoder", "target_means": [0.0] * 4}


def assigner(high: float, low: float) -> dict[str, Any]:
    return {"type": "mmdet.MaxIoUAssigner", "pos_iou_thr": high, "neg_iou_thr": low, "min_pos_iou": 0}


def sampler(kind: str, **options: Any) -> dict[str, Any]:
    return {"type": f"mmdet.{kind}Sampler", **options}


NMS = {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 20}
EVERYWHERE = {"allowed_border": -1, "pos_weight": -1}
BASE = {
    "data_preprocessor": {"type": "mmdet.DetDataPreprocessor", "pad_mask": True}
    | {
        "mean": [128.0] * 3,
        "std": [64.0] * 3,
    },
    "backbone": {"type": "mmdet.ResNet", "depth": 18, "base_channels": 8, "norm_eval": False},
    "neck": {"type": "mmdet.FPN", "in_channels": [8, 16, 32, 64], "out_channels": 16, "num_outs": 5},
}
RETINANET = BASE | {
    "type": "mmdet.RetinaNet",
    "bbox_head": {
        "type": "mmdet.RetinaHead",
        "num_classes": 3,
        "in_channels": 16,
        "feat_channels": 16,
        "stacked_convs": 1,
        "anchor_generator": ANCHORS | {"scales": [4.0], "strides": [4, 8, 16, 32, 64]},
        "bbox_coder": CODER | {"target_stds": [1.0] * 4},
        "loss_cls": {"type": "mmdet.FocalLoss", "use_sigmoid": True},
    },
    "train_cfg": {"assigner": assigner(0.5, 0.4), "sampler": sampler("Pseudo")} | EVERYWHERE,
    "test_cfg": {
        "nms_pre": 200,
        "score_thr": 0.0,
        "nms": {"type": "nms", "iou_threshold": 0.5},
        "max_per_img": 20,
    },
}
HALF = {"num": 32, "pos_fraction": 0.5, "neg_pos_ub": -1}
EXTRACTOR = {"type": "mmdet.SingleRoIExtractor", "out_channels": 16, "featmap_strides": [4, 8, 16, 32]}
PROPOSALS = {
    "nms_pre": 100,
    "max_per_img": 50,
    "nms": {"type": "nms", "iou_threshold": 0.7},
    "min_bbox_size": 0,
}
MASK_RCNN = BASE | {
    "type": "mmdet.MaskRCNN",
    "rpn_head": {
        "type": "mmdet.RPNHead",
        "in_channels": 16,
        "feat_channels": 16,
        "anchor_generator": ANCHORS | {"scales": [4.0], "strides": [4, 8, 16, 32, 64]},
        "bbox_coder": CODER | {"target_stds": [1.0] * 4},
        "loss_cls": {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": True},
        "loss_bbox": {"type": "mmdet.L1Loss"},
    },
    "roi_head": {
        "type": "mmdet.StandardRoIHead",
        "bbox_roi_extractor": EXTRACTOR | {"roi_layer": {"type": "RoIAlign", "output_size": 7}},
        "bbox_head": {
            "type": "mmdet.Shared2FCBBoxHead",
            "in_channels": 16,
            "fc_out_channels": 32,
            "num_classes": 3,
            "bbox_coder": CODER | {"target_stds": [0.1, 0.1, 0.2, 0.2]},
        },
        "mask_roi_extractor": EXTRACTOR | {"roi_layer": {"type": "RoIAlign", "output_size": 14}},
        "mask_head": {
            "type": "mmdet.FCNMaskHead",
            "num_convs": 1,
            "in_channels": 16,
            "conv_out_channels": 16,
            "num_classes": 3,
        },
    },
    "train_cfg": {
        "rpn": {
            "assigner": assigner(0.7, 0.3),
            "sampler": sampler("Random", **HALF, add_gt_as_proposals=False),
        }
        | EVERYWHERE,
        "rpn_proposal": PROPOSALS,
        "rcnn": {
            "assigner": assigner(0.5, 0.5),
            "sampler": sampler("Random", **HALF, add_gt_as_proposals=True),
            "mask_size": 28,
        }
        | EVERYWHERE,
    },
    "test_cfg": {
        "rpn": PROPOSALS,
        "rcnn": {"score_thr": 0.0, "mask_thr_binary": 0.5} | NMS,
    },
}


@pytest.mark.parametrize("config", [RETINANET, MASK_RCNN], ids=["RetinaNet", "MaskRCNN"])
def test_mmdets_detectors_train_and_predict(config: dict[str, Any]) -> None:
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.config import ConfigDict
    from mmengine.optim import OptimWrapper
    from mmengine.registry import DefaultScope, init_default_scope
    from mmengine.structures import InstanceData

    scope = DefaultScope.get_current_instance()
    init_default_scope("mmdet")
    try:
        torch.manual_seed(0)
        model = MODELS.build(ConfigDict(config))
        mask = np.zeros((1, 64, 96), np.uint8)
        mask[0, 12:44, 20:60] = 1
        truth = InstanceData(
            bboxes=torch.tensor([[20.0, 12, 60, 44]]),
            labels=torch.tensor([1]),
            masks=BitmapMasks(mask, 64, 96),
        )
        size = {"img_shape": (64, 96), "ori_shape": (64, 96), "scale_factor": (1.0, 1.0), "img_id": 0}
        sample = DetDataSample(metainfo=size)
        sample.gt_instances = truth
        data = {"inputs": [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)], "data_samples": [sample]}
        optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.002))
        model.train()
        losses = [model.train_step(data, optimizer) for _ in range(4)]
        totals = [float(each["loss"]) for each in losses]
        assert np.isfinite(totals).all()
        assert totals[-1] < totals[0]
        (found,) = model.eval().test_step(data)
        assert len(found.pred_instances) > 0
        if config is MASK_RCNN:
            assert {"loss_mask", "loss_bbox", "loss_cls"} <= losses[0].keys()
            assert found.pred_instances.masks.shape[1:] == (64, 96)
    finally:
        if scope is not None:
            init_default_scope(scope.scope_name)
