"""The wrapper's answers are the core's; what it is given is checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmseg.structures import SegDataSample
from support import random_image

from mm.conftest import load_tiny_clip
from ovseg.batch import BatchPredictor
from ovseg.errors import ConfigError
from ovseg.inferencer import Inferencer
from ovseg.mm import OvSegmentor, inferencer_from_config
from ovseg.mm.registry import MODELS
from ovseg.mm.segmentor import unpack

pytestmark = pytest.mark.usefixtures("tiny_clip")

CLASSES = ["cat", "dog", "grass", "sky"]
SIZES = ((60, 83), (96, 64), (60, 83))
SMALL = {"short_side": 64, "crop": 64, "stride": 32}
METHODS = {
    "clip": SMALL,
    "maskclip": SMALL,
    "sclip": SMALL | {"temperature": 65.0},
    "clearclip": SMALL,
    "naclip": SMALL | {"pamr_steps": 2},
    "proxyclip": SMALL,
    "trident": SMALL,
    "corrclip": SMALL | {"refine": "none"},
}


def images() -> list[np.ndarray]:
    return [random_image(*hw, seed=number) for number, hw in enumerate(SIZES)]


def batch(pictures: list[np.ndarray]) -> dict[str, Any]:
    """As mmengine's loader hands over what mmcv and mmseg have loaded and packed: BGR, channels first."""
    packed = []
    for number, picture in enumerate(pictures):
        sample = SegDataSample(
            metainfo={"img_shape": picture.shape[:2], "ori_shape": picture.shape[:2], "id": number}
        )
        tensor = torch.from_numpy(np.ascontiguousarray(picture[..., ::-1].transpose(2, 0, 1)))
        packed.append({"inputs": tensor, "data_samples": sample})
    return pseudo_collate(packed)


def build(**options: Any) -> OvSegmentor:
    config = {"type": "OvSegmentor", "vocabulary": CLASSES, "templates": "none", "encoder": "any"} | options
    return MODELS.build(ConfigDict(config))


@pytest.mark.parametrize("method", METHODS)
def test_equals_the_core(method: str) -> None:
    head = {"threshold": 0.1, "area_threshold": 0.05}
    model = build(method={"type": method, **METHODS[method]}, head=head)
    core = Inferencer(method, encoder="any", device="cpu", **head, **METHODS[method])
    expected = list(core(images(), CLASSES, templates="none", batch_size=len(SIZES)))
    samples = model.test_step(batch(images()))
    assert [sample.id for sample in samples] == [0, 1, 2]
    for sample, result, hw in zip(samples, expected, SIZES, strict=True):
        assert sample.pred_sem_seg.data.shape == (1, *hw)
        assert sample.pred_sem_seg.data.dtype == torch.int64
        np.testing.assert_array_equal(sample.pred_sem_seg.data[0].numpy(), result.labels)
        np.testing.assert_allclose(sample.confidence.data[0].numpy(), result.confidence, atol=1e-6)
        np.testing.assert_array_equal(unpack(sample, model.vocabulary, 255).labels, result.labels)
    assert samples[0].confidence.data.unique().numel() > 100


def test_red_is_not_blue() -> None:
    model = build(method={"type": "clip", **SMALL})
    swapped = [picture[..., ::-1].copy() for picture in images()]
    right, wrong = model.test_step(batch(images())), model.test_step(batch(swapped))
    assert any((a.confidence.data != b.confidence.data).any() for a, b in zip(right, wrong, strict=True))


def test_labels_without_samples() -> None:
    model = build(method={"type": "clip", **SMALL})
    inputs = batch(images())["inputs"]
    labels = model(inputs)
    predicted = model(inputs, mode="predict")
    assert [each.shape for each in labels] == [(1, *hw) for hw in SIZES]
    for each, sample in zip(labels, predicted, strict=True):
        torch.testing.assert_close(each, sample.pred_sem_seg.data)


def test_void_is_missed_by_the_metric() -> None:
    from mmengine.structures import PixelData

    from ovseg.mm.registry import METRICS

    model = build(method={"type": "clip", **SMALL}, head={"threshold": 1.0})
    (sample, *_) = model.test_step(batch(images()))
    assert (sample.pred_sem_seg.data == 255).all()
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, *SIZES[0], dtype=torch.uint8))
    metric = METRICS.build({"type": "mmseg.IoUMetric", "prefix": "x"})
    metric.dataset_meta = {"classes": CLASSES}
    metric.process({}, [sample.to_dict()])
    intersection, union, predicted, true = metric.results[0]
    assert (intersection[0], union[0], predicted.sum(), true[0]) == (0, 60 * 83, 0, 60 * 83)


@pytest.mark.parametrize("kind", ["OvSegmentor", "OvDetector", "OvCounter", "OvAnomalyDetector"])
def test_one_callable_is_behind_all_and_its_errors_end_a_run(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: BatchPredictor, images: Any, paths: Any = None) -> Any:
        raise RuntimeError(f"the tower fails on {self.tasks}")

    words = {} if kind == "OvAnomalyDetector" else {"vocabulary": CLASSES}
    model = MODELS.build({"type": kind, "method": {"type": "clip", **SMALL}, "encoder": "any", **words})
    monkeypatch.setattr(BatchPredictor, "ask", fails)
    inputs = batch(images())["inputs"]
    with pytest.raises(RuntimeError, match=f"'{model.task}'"):
        model(inputs, [model.sample_type(metainfo={"name": "cat"}) for _ in inputs], mode="predict")


def test_own_method_equals_the_preset() -> None:
    """ClearCLIP spelt out in a config is ClearCLIP."""
    spelt = {
        "type": "Scorer",
        "correlation": {"type": "SelfCorrelation", "parts": ("q",)},
        "residual": False,
        "windows": {"type": "WindowPlan", "crop": 64, "stride": 32, "fit": "pad"},
        "short_side": 64,
        "temperature": 50.0,
    }
    mine, preset = build(method=spelt), build(method={"type": "clearclip", **SMALL})
    for a, b in zip(mine.test_step(batch(images())), preset.test_step(batch(images())), strict=True):
        torch.testing.assert_close(a.confidence.data, b.confidence.data, rtol=0, atol=0)
    options = mine.inferencer.describe()["options"]
    assert {**options, "type": "Scorer"} == spelt


def test_registered_function_and_head_of_your_own() -> None:
    from ovseg.correlation import SelfCorrelation
    from ovseg.heads import SegmentationHead
    from ovseg.scorer import Scorer

    def values_only(encoder: Any, *, short_side: int = 64) -> Scorer:
        return Scorer(encoder, SelfCorrelation(("v",)), short_side=short_side)

    class StrictHead(SegmentationHead):
        def __init__(self) -> None:
            super().__init__(threshold=1.0)

    MODELS.register_module(name="values_only", module=values_only)
    MODELS.register_module(name="StrictHead", module=StrictHead)
    try:
        model = build(method={"type": "values_only", "short_side": 96}, head={"type": "StrictHead"})
        assert model.scorer.short_side == 96
        assert (model.test_step(batch(images()))[0].pred_sem_seg.data == 255).all()
    finally:
        MODELS.module_dict.pop("values_only")
        MODELS.module_dict.pop("StrictHead")


def test_moves_with_the_runner() -> None:
    model = build(method={"type": "clip", **SMALL}).to("cpu", torch.float32)
    assert {name.split(".")[0] for name in model.state_dict()} == {"scorer", "text_encoder"}
    assert not model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": {"type": "sclap"}}, r"unknown method type 'sclap'\. Did you mean 'sclip'"),
        ({"method": {"temperature": 3}}, "a dict with a `type`"),
        ({"method": {"type": "sclip", "temprature": 3}}, "Did you mean 'temperature'"),
        ({"method": {"type": "sclip", "encoder": "x"}}, "'encoder' belongs to the model"),
        ({"method": {"type": "sclip"}, "head": {"treshold": 0.1}}, "treshold"),
        (
            {"method": {"type": "Scorer", "correlation": {"type": "Nothing"}}},
            "unknown method.correlation type",
        ),
        ({"method": {"type": "Scorer", "nothing": 1}}, "method 'Scorer' cannot be built"),
    ],
)
def test_mistakes_in_a_config(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OvSegmentor(vocabulary=CLASSES, **options)


def test_mistakes_in_a_pipeline() -> None:
    model = build(method={"type": "clip", **SMALL})
    data = batch(images())
    with pytest.raises(ConfigError, match="must not normalise"):
        model.test_step({**data, "inputs": [each.float() / 255 for each in data["inputs"]]})
    data["data_samples"][0].set_metainfo({"ori_shape": (10, 10)})
    with pytest.raises(ConfigError, match="take Resize out"):
        model.test_step(data)
    with pytest.raises(ConfigError, match="has no loss"):
        model(data["inputs"], mode="loss")


def test_inferencer_from_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    asked = []

    def remember(name: str, **details: Any) -> Any:
        asked.append((name, details["weights"]))
        return load_tiny_clip(name)

    monkeypatch.setattr("ovseg.inferencer.load_clip", remember)
    path = tmp_path / "mine.py"
    path.write_text(
        "model = dict(type='OvSegmentor', method=dict(type='sclip', temperature=65.0), encoder='one',\n"
        "    weights='one.pt', templates='none', vocabulary='voc21',\n"
        "    head=dict(threshold=0.1, area_threshold=0.2))\n"
    )
    inferencer = inferencer_from_config(path, classes="cat, dog")
    assert inferencer.scorer.temperature == 65.0
    assert (inferencer.head.threshold, inferencer.head.area_threshold) == (0.1, 0.2)
    assert inferencer.describe()["method"] == "sclip"
    inferencer_from_config(path, encoder="two")
    inferencer_from_config(path, encoder="three", weights="three.pt")
    assert [(name, weights and str(weights)) for name, weights in asked] == [
        ("one", "one.pt"),
        ("two", None),
        ("three", "three.pt"),
    ]
    with pytest.raises(ConfigError, match="no such config"):
        inferencer_from_config(tmp_path / "none.py")
    path.write_text("model = dict(type='EncoderDecoder')\n")
    with pytest.raises(ConfigError, match="no model of type OvSegmentor"):
        inferencer_from_config(path)
    path.write_text("model = dict(\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        inferencer_from_config(path)
