"""COCO's rules, LVIS's rules and splits, where the answer is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ovseg.mm.detection
from ovseg.errors import ConfigError
from ovseg.mm.coco_data import CocoTruth, LvisDataset
from ovseg.mm.coco_metric import OvCocoMetric
from ovseg.mm.registry import METRICS
from ovseg.rle import encode_mask

NAMES = ("cat", "dog", "grass snake")
NUMBERS = {"cat": 5, "dog": 9, "grass snake": 2}
BOX = [10.0, 10.0, 30.0, 50.0]
ELSEWHERE = [50.0, 10.0, 70.0, 50.0]

assert ovseg.mm.detection.__all__  # mmdet's metrics come in through it, once


def truth_file(folder: Path, images: list[dict[str, Any]], there: list[tuple[int, str, list[float]]]) -> str:
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": NUMBERS[name],
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "area": (box[2] - box[0]) * (box[3] - box[1]),
        }
        for number, (image, name, box) in enumerate(there, start=1)
    ]
    categories = [{"id": number, "name": name.replace(" ", "_")} for name, number in NUMBERS.items()]
    path = folder / "truth.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return str(path)


def image(number: int, **marks: Any) -> dict[str, Any]:
    given = {"neg_category_ids": [], "not_exhaustive_category_ids": []} | marks
    return {"id": number, "height": 60, "width": 80, "file_name": f"{number}.jpg"} | given


def measure(
    path: str, found: dict[int, list[tuple[str, list[float], float]]], **options: Any
) -> dict[str, float]:
    metric = METRICS.build({"type": "OvCocoMetric", "ann_file": path, **options})
    assert isinstance(metric, OvCocoMetric)
    metric.dataset_meta = {"classes": NAMES}
    for number, detections in found.items():
        predicted = {
            "bboxes": torch.tensor([box for _, box, _ in detections]).reshape(-1, 4),
            "labels": torch.tensor([NAMES.index(name) for name, _, _ in detections], dtype=torch.long),
            "scores": torch.tensor([score for _, _, score in detections]),
        }
        metric.process({}, [{"img_id": number, "ori_shape": (60, 80), "pred_instances": predicted}])
    return metric.evaluate(len(found))


def test_splits(tmp_path: Path) -> None:
    path = truth_file(
        tmp_path, [image(1), image(2)], [(1, "cat", BOX), (2, "dog", BOX), (2, "cat", ELSEWHERE)]
    )
    found = {1: [("cat", BOX, 0.9)], 2: [("cat", BOX, 0.8), ("dog", ELSEWHERE, 0.7), ("dog", BOX, 0.6)]}
    metrics = measure(path, found, splits={"base": ["cat"], "novel": ["dog"], "none": ["grass snake"]})
    # half of the cats found, before any mistake: 51 of 101 recalls; the dog after one mistake: precision 1/2
    assert metrics["box_AP50_base"] == pytest.approx(100 * 51 / 101)
    assert metrics["box_AP50_novel"] == pytest.approx(50)
    assert metrics["box_AP50"] == metrics["box_AP"] == pytest.approx((100 * 51 / 101 + 50) / 2)
    assert np.isnan(metrics["box_AP_none"])


def test_nothing_found_is_0(tmp_path: Path) -> None:
    path = truth_file(tmp_path, [image(1)], [(1, "cat", BOX)])
    assert measure(path, {1: []}) == {"box_AP": 0, "box_AP50": 0, "box_AP75": 0}


def test_only_the_images_that_were_looked_at(tmp_path: Path) -> None:
    path = truth_file(tmp_path, [image(1), image(2)], [(1, "cat", BOX), (2, "cat", BOX)])
    assert measure(path, {1: [("cat", BOX, 0.9)]})["box_AP"] == pytest.approx(100)


def test_sizes(tmp_path: Path) -> None:
    small, medium = [5.0, 5.0, 15.0, 15.0], [20.0, 10.0, 60.0, 50.0]
    path = truth_file(tmp_path, [image(1)], [(1, "cat", medium), (1, "cat", small), (1, "dog", medium)])
    metrics = measure(path, {1: [("cat", small, 0.9)]}, sizes=True, iou_thrs=[0.75])
    assert metrics["box_AP_small"] == pytest.approx(100)
    assert metrics["box_AP_medium"] == 0
    assert np.isnan(metrics["box_AP_large"])
    assert "box_AP50" not in metrics


class TestLvis:
    """A class counts where it is annotated; each case differs from COCO's figure for the same detections."""

    THERE = ((1, "cat", BOX), (2, "dog", BOX))

    def figures(
        self, tmp_path: Path, second: dict[str, Any], extra: tuple[str, list[float]]
    ) -> tuple[float, float]:
        """Of cats, by LVIS's rules and by COCO's, with a surer false detection in the second image."""
        path = truth_file(tmp_path, [image(1), image(2, **second)], list(self.THERE))
        found = {1: [("cat", BOX, 0.5)], 2: [("dog", BOX, 0.9), (*extra, 0.8)]}
        splits = {"cats": ["cat"]}
        lvis = measure(path, found, federated=True, splits=splits)
        return lvis["box_AP_cats"], measure(path, found, splits=splits)["box_AP_cats"]

    def test_not_annotated(self, tmp_path: Path) -> None:
        assert self.figures(tmp_path, {}, ("cat", BOX)) == (pytest.approx(100), pytest.approx(50))

    def test_known_to_be_absent(self, tmp_path: Path) -> None:
        marks = {"neg_category_ids": [NUMBERS["cat"]]}
        assert self.figures(tmp_path, marks, ("cat", BOX)) == (pytest.approx(50), pytest.approx(50))

    def test_not_all_of_them_annotated(self, tmp_path: Path) -> None:
        path = truth_file(
            tmp_path,
            [image(1, not_exhaustive_category_ids=[NUMBERS["cat"]])],
            [(1, "cat", BOX)],
        )
        found = {1: [("cat", BOX, 0.5), ("cat", ELSEWHERE, 0.9)]}
        assert measure(path, found, federated=True)["box_AP"] == pytest.approx(100)
        assert measure(path, found)["box_AP"] == pytest.approx(50)

    def test_the_surest_of_an_image(self, tmp_path: Path) -> None:
        path = truth_file(tmp_path, [image(1, neg_category_ids=[9])], [(1, "cat", BOX)])
        found = {1: [("cat", BOX, 0.1), *[("dog", ELSEWHERE, 0.2 + n / 10) for n in range(3)]]}
        assert measure(path, found, federated=True, max_detections=3)["box_AP"] == 0
        assert measure(path, found, federated=True, max_detections=4)["box_AP"] == pytest.approx(100)

    def test_needs_its_marks(self, tmp_path: Path) -> None:
        plain = {"id": 1, "height": 60, "width": 80, "file_name": "1.jpg"}
        path = truth_file(tmp_path, [plain], [(1, "cat", BOX)])
        with pytest.raises(ConfigError, match="federated=True needs a file in LVIS's form"):
            measure(path, {1: [("cat", BOX, 0.9)]}, federated=True)


def test_masks(tmp_path: Path) -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:50, 10:30] = True
    path = Path(truth_file(tmp_path, [image(1)], [(1, "cat", BOX)]))
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = encode_mask(mask)
    path.write_text(json.dumps(content))
    half = mask.copy()
    half[:, 20:] = False
    for found, expected in (
        (mask, pytest.approx(100)),
        (half, pytest.approx(10)),
    ):  # an overlap of a half counts at 0.5 only
        metric = OvCocoMetric(metric="segm", ann_file=str(path))
        metric.dataset_meta = {"classes": NAMES}
        predicted = {
            "bboxes": torch.tensor([BOX]),
            "labels": torch.tensor([0]),
            "scores": torch.tensor([0.9]),
            "masks": [encode_mask(found)],
        }
        metric.process({}, [{"img_id": 1, "ori_shape": (60, 80), "pred_instances": predicted}])
        assert metric.evaluate(1)["mask_AP"] == expected
    with pytest.raises(ConfigError, match="the model gave none"):
        measure(str(path), {1: [("cat", BOX, 0.9)]}, metric="segm")


def test_classes_in_the_order_asked_for(tmp_path: Path) -> None:
    api = CocoTruth(truth_file(tmp_path, [image(1)], []))
    assert api.get_cat_ids(["Grass Snake", "cat"]) == [2, 5]
    assert api.get_cat_ids() == [5, 9, 2]
    with pytest.raises(ConfigError, match=r"1 of the data set's are not among them: horse"):
        api.get_cat_ids(["cat", "horse"])


def test_lvis_names_its_images_folders(tmp_path: Path) -> None:
    images = [image(1) | {"coco_url": "http://images.example.org/train2017/000001.jpg"}]
    del images[0]["file_name"]
    path = truth_file(tmp_path, images, [(1, "cat", BOX)])
    dataset = LvisDataset(vocabulary=list(NAMES), ann_file=path, data_prefix={"img": "root"}, test_mode=True)
    assert dataset[0]["img_path"] == "root/train2017/000001.jpg"
    assert dataset[0]["instances"][0]["bbox_label"] == 0
    assert dataset.metainfo["ann_file"] == path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": {"novel": ["horse"]}}, "split 'novel' has classes that the data set lacks: horse"),
        ({"metric": "proposal"}, "measures bbox, segm, not proposal"),
    ],
)
def test_mistakes(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = truth_file(tmp_path, [image(1)], [(1, "cat", BOX)])
    with pytest.raises(ConfigError, match=message):
        measure(path, {1: []}, **options)
