"""Detectors through mmengine's Runner, on three images in each data set's own layout, and on scenes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from support import random_image

from mm.conftest import ALL_CONFIGS, REPO
from mm.detection_layouts import objects, segments, write_coco
from mm.test_configs import own_and_inherited, repeated
from ovseg.answers import Answers
from ovseg.errors import ConfigError
from ovseg.inferencer import Inferencer
from ovseg.methods import METHODS
from ovseg.mm import inferencer_from_config, load_config
from ovseg.mm.build import vocabulary_of
from ovseg.mm.detector import OvDetector, unpack
from ovseg.mm.registry import DATASETS, MODELS
from ovseg.mm.runner import prepare, run_test
from ovseg.region_route import RegionRoute
from ovseg.rle import decode_mask
from ovseg.scenes import SceneSet
from ovseg.tasks import TaskHeads
from ovseg.text.vocabulary import Vocabulary

CONFIGS = {path.stem: path for path in ALL_CONFIGS if path.parent.name == "detection"}
QUICK = {
    "test_dataloader.num_workers": 0,
    "test_dataloader.persistent_workers": False,
    "model.templates": "none",
}
SMALL = {"short_side": 64, "crop": 64, "stride": 32}
LAYOUTS = {
    "coco_instance": ("coco", "coco", "annotations/instances_val2017.json", ["val2017"] * 3),
    "coco_ov": ("coco", "ov_coco", "annotations/instances_val2017.json", ["val2017"] * 3),
    "lvis_ov": ("lvis_v1", "lvis", "annotations/lvis_v1_val.json", ["train2017", "val2017", "train2017"]),
}
CLASSES = ["cat", "dog", "grass", "sky"]
IMAGES = [random_image(*hw, seed=number) for number, hw in enumerate([(60, 83), (96, 64), (60, 83)])]

pytestmark = pytest.mark.usefixtures("tiny_clip")


def config_for(method: str, dataset: str, tmp_path: Path, **options: Any) -> Any:
    (path,) = (p for n, p in CONFIGS.items() if n.startswith(f"{method}_") and n.endswith(f"_{dataset}"))
    folder, vocabulary, file, folders = LAYOUTS[dataset]
    names = Vocabulary.parse(vocabulary).names
    write_coco(tmp_path / folder, names, file=file, folders=folders, lvis=dataset == "lvis_ov")
    return load_config(path, QUICK | {"test_dataloader.dataset.data_root": str(tmp_path / folder)} | options)


def tells_its_objects(
    self: Inferencer, images: Any, classes: Any, *, tasks: Any = (), **_: Any
) -> Iterator[Answers]:
    """A perfect model for `detection_layouts`: what it finds is written in the picture."""
    names = Vocabulary.parse(classes).names
    for image in images:
        found = segments(image, names)
        yield Answers(image.shape[:2], names, instances=found, detections=found.detections())


def batch(pictures: list[np.ndarray], **details: Any) -> dict[str, Any]:
    packed = []
    for number, image in enumerate(pictures):
        size = {"img_shape": image.shape[:2], "ori_shape": image.shape[:2], "img_id": number}
        tensor = torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1)))
        packed.append({"inputs": tensor, "data_samples": DetDataSample(metainfo=size | details)})
    return pseudo_collate(packed)


def build(**options: Any) -> OvDetector:
    given = {"method": {"type": "naclip", **SMALL}, "vocabulary": CLASSES, "templates": "none"}
    given["background"] = ["wall"]  # ovseg's own 22 words take all pixels where a model is random
    return MODELS.build(ConfigDict({"type": "OvDetector", "encoder": "any"} | given | options))


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_build(name: str) -> None:
    config = load_config(CONFIGS[name], QUICK)
    assert name.split("_")[0].removesuffix("-sam") == config.model.method.type
    assert config.model.method.type in METHODS
    model = MODELS.build(config.model)
    assert model.inferencer.method == config.model.method.type
    assert (model.route is None) == ("sam" not in name)
    dataset = DATASETS.get(config.test_dataloader.dataset.type)
    assert issubclass(dataset, DATASETS.get("mmdet.CocoDataset")) or name.endswith("scenes")
    wanted = config.test_dataloader.dataset.get("vocabulary", "lvis" if "lvis" in name else None)
    assert wanted is None or Vocabulary.parse(wanted).names == vocabulary_of(config).names
    own, inherited = own_and_inherited(CONFIGS[name])
    assert repeated(own, inherited) == []
    assert len(CONFIGS[name].read_text().splitlines()) <= 13


def test_every_method_has_every_dataset() -> None:
    assert len(CONFIGS) == 11
    for method in ("proxyclip", "naclip", "maskclip"):
        for dataset in LAYOUTS:
            (name,) = (n for n in CONFIGS if n.startswith(f"{method}_vitb16") and n.endswith(dataset))
            meant = "laion2b" if method == "maskclip" else "openai"
            assert load_config(CONFIGS[name]).model.encoder == f"clip_vitb16_{meant}"
    meta = yaml.safe_load((REPO / "configs" / "detection" / "metafile.yml").read_text())
    assert {each["Config"] for each in meta["Models"]} == {
        str(path.relative_to(REPO)) for path in CONFIGS.values()
    }


@pytest.mark.parametrize("dataset", LAYOUTS)
def test_perfect_detections_are_100(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inferencer, "answers", tells_its_objects)
    config = config_for("naclip", dataset, tmp_path)
    metrics = run_test(prepare(config, work_dir=tmp_path / "work", out=tmp_path / "out"))
    known = {name: value for name, value in metrics.items() if not np.isnan(value)}
    assert known.keys() >= {"box_AP", "box_AP50", "box_AP75"}
    assert ("mask_AP50" in known) == (dataset != "coco_ov")
    splits = {"coco_instance": (), "coco_ov": ("base", "novel"), "lvis_ov": ("common", "frequent")}[dataset]
    assert known.keys() >= {f"box_AP50_{split}" for split in splits}
    assert all(value == pytest.approx(100) for value in known.values())
    found = json.loads((tmp_path / "out" / "results.bbox.json").read_text())
    assert len(found) == 9
    assert {each["image_id"] for each in found} == {7, 17, 27}


def test_classes_of_another_order_are_not_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(self: Inferencer, images: Any, classes: Any, **options: Any) -> Iterator[Answers]:
        for answer in tells_its_objects(self, images, classes, **options):
            answer.detections.labels[:] = (answer.detections.labels + 1) % len(answer.names)
            yield answer

    monkeypatch.setattr(Inferencer, "answers", shifted)
    metrics = run_test(prepare(config_for("naclip", "coco_ov", tmp_path), work_dir=tmp_path / "work"))
    assert metrics["box_AP50"] < 30


def test_a_limit_is_no_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inferencer, "answers", tells_its_objects)
    config = prepare(config_for("naclip", "coco_instance", tmp_path), work_dir=tmp_path / "work", limit=1)
    assert run_test(config)["mask_AP"] == pytest.approx(100)


@pytest.mark.parametrize("dataset", ["coco_instance", "lvis_ov"])
def test_the_real_path_runs(dataset: str, tmp_path: Path) -> None:
    small = {f"model.method.{key}": value for key, value in SMALL.items()}
    config = config_for("maskclip", dataset, tmp_path, **small)
    metrics = run_test(prepare(config, work_dir=tmp_path / "work"))
    assert {"box_AP50", "mask_AP50"} <= metrics.keys()
    assert all(0 <= value <= 100 for value in metrics.values() if not np.isnan(value))


def test_with_mmdets_own_dataset_and_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector is mmdet's to use; where both metrics look at all images, figures agree."""

    def nearly(self: Inferencer, images: Any, classes: Any, **options: Any) -> Iterator[Answers]:
        for answer in tells_its_objects(self, images, classes, **options):
            answer.detections.boxes_xyxy[::2, 2] -= 4
            answer.detections.labels[1:2] = 5
            yield answer

    monkeypatch.setattr(Inferencer, "answers", nearly)
    config = config_for("naclip", "coco_instance", tmp_path, **{"model.task": "detect"})
    ours = run_test(prepare(config, work_dir=tmp_path / "work"))
    config = config_for("naclip", "coco_instance", tmp_path, **{"model.task": "detect"})
    path = tmp_path / "coco/annotations/instances_val2017.json"
    file = json.loads(path.read_text())
    file["categories"].sort(key=lambda each: each["id"])  # mmdet takes the file's order for the classes'
    path.write_text(json.dumps(file))
    dataset = config.test_dataloader.dataset
    dataset.type, dataset.metainfo = "mmdet.CocoDataset", {"classes": Vocabulary.parse("coco").names}
    del dataset.vocabulary
    config.test_evaluator = ConfigDict(type="mmdet.CocoMetric", metric=["bbox", "segm"], ann_file=str(path))
    theirs = run_test(prepare(config, work_dir=tmp_path / "theirs"))
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        assert 10 < ours[f"{name}_AP"] < 90
        for figure, ending in (("mAP", "AP"), ("mAP_50", "AP50"), ("mAP_75", "AP75"), ("mAP_s", "AP_small")):
            mine = np.nan_to_num(ours[f"{name}_{ending}"] / 100, nan=-1)
            assert mine == pytest.approx(theirs[f"coco/{kind}_{figure}"], abs=6e-4)


def test_scenes_have_their_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"split": "val", "seed": 3, "length": 3, "size_hw": (96, 128)}
    scenes = SceneSet(**options)
    drawn = {scene.image.tobytes(): scene for scene in (scenes[0], scenes[1], scenes[2])}

    def knows(self: Inferencer, images: Any, classes: Any, **_: Any) -> Iterator[Answers]:
        names = Vocabulary.parse(classes).names
        for image in images:
            scene = drawn[image.tobytes()]
            labels = [names.index(name) for name in scene.names]
            found = objects(
                np.stack([scene.instances * 0 + 1, scene.instances, scene.instances * 0], -1), names
            )
            found.labels[:] = labels
            np.testing.assert_array_equal(found.boxes_xyxy, scene.boxes_xyxy)
            yield Answers(image.shape[:2], names, detections=found)

    monkeypatch.setattr(Inferencer, "answers", knows)
    changes = {f"test_dataloader.dataset.{key}": value for key, value in options.items()}
    config = load_config(CONFIGS["proxyclip_bundled_scenes"], QUICK | changes)
    assert len(vocabulary_of(config)) == len(scenes.classes) - len(scenes.background_classes)
    metrics = run_test(prepare(config, work_dir=tmp_path))
    assert metrics == {
        f"{k}_{f}": pytest.approx(100) for k in ("box", "mask") for f in ("AP", "AP50", "AP75")
    }


@pytest.mark.parametrize("task", ["detect", "instances"])
def test_equals_the_core(task: str) -> None:
    head = {"threshold": 0.1, "min_area": 0.01}
    model = build(task=task, head=head)
    core = Inferencer("naclip", encoder="any", device="cpu", heads=TaskHeads(), **SMALL)
    for part in (core.heads.segment, core.heads.detect.segment, core.heads.detect):
        part.threshold = 0.1
    core.heads.detect.min_area = core.heads.instances.min_area = 0.01
    expected = list(core.answers(IMAGES, model.asked, tasks=(task,), templates="none"))
    samples = model.test_step(batch(IMAGES))
    assert sum(len(each.pred_instances) for each in samples) > 2
    for sample, answer, image in zip(samples, expected, IMAGES, strict=True):
        wanted = answer.detections if task == "detect" else answer.instances.detections()
        found = unpack(sample, model.vocabulary, image.shape[:2])
        np.testing.assert_array_equal(found.labels, wanted.labels)
        np.testing.assert_allclose(found.boxes_xyxy, wanted.boxes_xyxy)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
        assert found.masks == wanted.masks
        assert decode_mask(found.masks[0]).shape == image.shape[:2]
        drawn = model.draw(torch.from_numpy(image.transpose(2, 0, 1).copy()), sample)
        assert drawn.size[1] >= image.shape[0]


def test_background_words_compete() -> None:
    """Near twins of the classes take pixels from them; labels stay the classes'."""
    plain, crowded = build(), build(background=["kitten", "puppy", "lawn", "heaven", "wall", "floor"])
    assert crowded.vocabulary.names == tuple(CLASSES)
    found = [m.detect(IMAGES) for m in (plain, crowded)]
    assert [each.scores.tolist() for each in found[0]] != [each.scores.tolist() for each in found[1]]
    assert all(each.labels.max(initial=0) < 4 and each.names[:4] == tuple(CLASSES) for each in found[1])
    with pytest.raises(ConfigError, match="has a background already"):
        build(vocabulary=["cat", "background"], background=["wall"])


def test_outlines_by_sam() -> None:
    model = build(outlines="any")
    assert "outlines" in {name.split(".")[0] for name in model.state_dict()}
    assert all(each.masks is not None for each in model.detect(IMAGES[:1]))


@pytest.mark.parametrize("crops", [None, "masked", "blurred"])
def test_regions_of_a_file(crops: str | None, tmp_path: Path) -> None:
    boxes = [[4, 6, 30, 40], [40, 10, 35, 45], [0, 0, 83, 60]]
    records = [{"image_id": "a", "bbox": box, "score": 1.0} for box in boxes]
    (tmp_path / "boxes.json").write_text(json.dumps(records))
    model = build(proposals=str(tmp_path / "boxes.json"), crops=crops, head={"nms_iou": 1.0})
    (sample,) = model.test_step(batch(IMAGES[:1], img_path="somewhere/a.png"))
    found = sample.pred_instances
    assert 0 < len(found) <= 3
    corners = {(4, 6, 34, 46), (40, 10, 75, 55), (0, 0, 83, 60)}
    assert {tuple(int(x) for x in box) for box in found.bboxes.tolist()} <= corners
    assert "masks" not in found
    with pytest.raises(ConfigError, match="found by the image's name"):
        model.detect(IMAGES[:1])


def test_regions_of_sam() -> None:
    automatic = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    model = build(proposals={"type": "sam", **automatic})
    assert "proposer" in {name.split(".")[0] for name in model.state_dict()}
    found = model.detect(IMAGES[:1])
    assert found[0].masks is not None
    assert isinstance(model.predictor(), RegionRoute)
    answer = next(model.predictor().answers(IMAGES[:1], CLASSES, tasks="segment,detect", templates="none"))
    assert answer.segmentation is not None
    np.testing.assert_array_equal(answer.detections.boxes_xyxy, found[0].boxes_xyxy)
    told = model.predictor().describe()["region_route"]
    assert told["proposals"] == "SamProposals"
    assert told["points_per_side"] == 3


def test_answers_in_the_place_of_an_inferencer(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        f"_base_ = '{CONFIGS['proxyclip_bundled_scenes']}'\n"
        "model = dict(method=dict(short_side=64, crop=64, stride=32), head=dict(max_detections=1))\n"
    )
    inferencer = inferencer_from_config(tmp_path / "mine.py", device="cpu")
    answer = next(inferencer.answers(IMAGES[:1], CLASSES, tasks="detect", templates="none"))
    assert len(answer.detections) <= 1
    with pytest.raises(ConfigError, match="nothing of its model is trained"):
        inferencer_from_config(tmp_path / "mine.py", checkpoint=tmp_path / "any.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "segment"}, "task must be 'detect' or 'instances'"),
        ({"crops": "masked"}, "crops are pictures of proposals"),
        ({"proposals": "sam", "task": "instances"}, "with proposals the task is 'detect'"),
        ({"proposals": {"type": "selective search"}}, "proposals are 'sam', a file"),
        ({"head": {"treshold": 0.1}}, "treshold"),
        ({"method": {"type": "naclap"}}, "Did you mean 'naclip'"),
    ],
)
def test_mistakes_in_a_config(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OvDetector(**({"method": {"type": "naclip"}, "vocabulary": CLASSES} | options))


def test_has_no_loss() -> None:
    with pytest.raises(ConfigError, match="has no loss"):
        build()(batch(IMAGES)["inputs"], mode="loss")
