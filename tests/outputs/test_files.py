"""Files that other tools read, read by those tools."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from ovseg.anomaly_results import AnomalyMap, AnomalyThreshold
from ovseg.answers import TASKS, Answers
from ovseg.counting_results import ClassCount, Counts, nothing_found
from ovseg.detection_results import Detections
from ovseg.errors import ConfigError
from ovseg.outputs import coco_files, label_files, yolo_files
from ovseg.outputs.drawing import count_overlay, detection_overlay, instance_overlay
from ovseg.outputs.writers import build_writers
from ovseg.panoptic_results import Panoptic
from ovseg.records import in_words, record_of
from ovseg.results import Segmentation

#: Of pycocotools, compiled before numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

NAMES = ("cat", "grass", "dög 犬")
HW = (40, 60)


@pytest.fixture
def panoptic() -> Panoptic:
    """Two cats, of which the second has a corner cut off, on grass; above is nothing."""
    segments = np.zeros(HW, np.int32)
    segments[20:] = 3
    segments[5:25, 5:20] = 1
    segments[10:30, 30:55] = 2
    segments[10:15, 30:35] = 0
    return Panoptic(
        segments,
        np.array([0, 0, 1]),
        np.array([0.9, 0.8, 0.7], np.float32),
        np.array([True, True, False]),
        NAMES,
    )


@pytest.fixture
def answers(panoptic: Panoptic) -> Answers:
    labels = np.where(panoptic.segments == 0, 255, np.where(panoptic.segments == 3, 1, 0)).astype(np.uint8)
    density = np.zeros((4, 6), np.float32)
    density[1, 1] = density[2, 4] = 1
    points = np.array([[12, 15], [42, 20]], np.float32)
    counts = Counts((ClassCount("cat", 0, 2.0, density, points, 0.5), nothing_found("dög 犬", 2, (4, 6))), HW)
    threshold = AnomalyThreshold(0.5, 0.5, (0.0, 1.0), (0.0, 1.0))
    heat = np.linspace(0, 1, HW[0] * HW[1], dtype=np.float32).reshape(HW)
    return Answers(
        HW,
        NAMES,
        Segmentation(labels, NAMES, np.full(HW, 0.5, np.float32), scores=np.ones((3, 5, 8), np.float32)),
        panoptic,
        panoptic.detections(),
        AnomalyMap(heat, 0.8, threshold),
        counts,
    )


def joined(answers: Answers, task: str, tmp_path: Path) -> Path:
    part = {**coco_files.annotations_of(answers), "file_name": "b.png"}
    parts = [("a/b 犬.jpg", part), ("c.jpg", part)]
    with open(tmp_path / "coco.json", "w", encoding="utf-8") as stream:
        coco_files.join(stream, task, parts, coco_files.categories(NAMES, (True, False, None)))
    return tmp_path / "coco.json"


class TestCoco:
    @pytest.mark.parametrize(("task", "count"), [("segment", 2), ("instances", 2), ("detect", 2)])
    def test_pycocotools_reads_it(
        self, answers: Answers, task: str, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        coco = COCO(str(joined(answers, task, tmp_path)))
        assert [each["file_name"] for each in coco.loadImgs(coco.getImgIds())] == ["a/b 犬.jpg", "c.jpg"]
        assert [coco.cats[i]["name"] for i in sorted(coco.cats)] == list(NAMES)
        found = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
        assert len(found) == count
        assert len(coco.anns) == 2 * count
        for each in found:
            mask = coco.annToMask(each).astype(bool)
            assert mask.sum() == each["area"]
            x, y, width, height = map(int, coco_mask.toBbox(each["segmentation"]))
            assert each["bbox"] == [x, y, width, height]

    def test_masks_are_the_segments(self, answers: Answers, panoptic: Panoptic, tmp_path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("builtins.print", lambda *each: None)
            coco = COCO(str(joined(answers, "instances", tmp_path)))
        masks = [coco.annToMask(each).astype(bool) for each in coco.loadAnns(coco.getAnnIds(imgIds=[1]))]
        np.testing.assert_array_equal(masks[0], panoptic.segments == 1)
        np.testing.assert_array_equal(masks[1], panoptic.segments == 2)

    def test_panoptic_pictures_and_their_list_agree(self, answers: Answers, tmp_path: Path) -> None:
        content = json.loads(joined(answers, "panoptic", tmp_path).read_text("utf-8"))
        stream = io.BytesIO()
        label_files.write_panoptic(stream, answers.instances)
        picture = np.array(Image.open(stream)).astype(int) @ [1, 256, 256**2]
        infos = content["annotations"][0]["segments_info"]
        assert content["annotations"][0]["file_name"] == "b.png"
        assert {each["id"]: each["area"] for each in infos} == {
            number: int((picture == number).sum()) for number in np.unique(picture).tolist() if number
        }
        assert [each["isthing"] for each in content["categories"]] == [1, 0, 1]

    def test_a_run_that_found_nothing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        coco = COCO(
            str(joined(Answers(HW, NAMES, detections=Detections.empty(NAMES, HW)), "detect", tmp_path))
        )
        assert coco.anns == {}
        assert len(coco.imgs) == 2


class TestYolo:
    def test_supervision_reads_polygons_and_boxes(self, answers: Answers, tmp_path: Path) -> None:
        supervision = pytest.importorskip("supervision")
        Image.new("RGB", HW[::-1]).save(tmp_path / "a.png")
        (tmp_path / "data.yaml").write_text(yolo_files.data_file(NAMES, "labels"), encoding="utf-8")
        for name, text, masks in (
            ("boxes", yolo_files.boxes(answers.detections), False),
            ("polygons", yolo_files.polygons(answers.detections), True),
        ):
            (tmp_path / name).mkdir()
            (tmp_path / name / "a.txt").write_text(text)
            dataset = supervision.DetectionDataset.from_yolo(
                str(tmp_path), str(tmp_path / name), str(tmp_path / "data.yaml"), force_masks=masks
            )
            found = next(iter(dataset))[2]
            assert dataset.classes == list(NAMES)
            np.testing.assert_allclose(found.xyxy, answers.detections.boxes_xyxy, atol=1.01)
            if masks:
                for mine, theirs in zip(range(2), found.mask, strict=True):
                    mask = answers.detections.mask(mine)
                    assert (mask & theirs).sum() / (mask | theirs).sum() > 0.85

    def test_a_mask_of_a_line_of_pixels_is_its_box(self) -> None:
        segments = np.zeros(HW, np.int32)
        segments[7, 10:13] = 1
        thin = Panoptic(segments, np.array([2]), np.ones(1, np.float32), np.ones(1, bool), NAMES)
        label, *shares = yolo_files.polygons(thin.detections()).split()
        assert label == "2"
        assert len(shares) == 8


class TestLabels:
    def test_ids_and_their_classes(self, panoptic: Panoptic) -> None:
        stream = io.BytesIO()
        label_files.write_ids(stream, panoptic)
        picture = Image.open(stream)
        np.testing.assert_array_equal(np.array(picture), panoptic.segments)
        assert json.loads(picture.text["ovseg"])["segments"][2] == {"id": 3, "name": "grass", "thing": False}

    def test_masks_of_anomalies_need_a_threshold(self, answers: Answers) -> None:
        stream = io.BytesIO()
        label_files.write_mask(stream, answers.anomaly)
        np.testing.assert_array_equal(np.array(Image.open(stream)) == 255, answers.anomaly.mask)
        with pytest.raises(ConfigError, match="--good"):
            label_files.write_mask(stream, answers.anomaly.judged(None))

    def test_maps_and_densities(self, answers: Answers) -> None:
        stream = io.BytesIO()
        label_files.write_densities(stream, answers.counts)
        stream.seek(0)
        saved = np.load(stream)
        assert saved["names"].tolist() == ["cat"]
        assert saved["density"].sum() == 2
        stream = io.BytesIO()
        label_files.write_heat(stream, answers.anomaly)
        stream.seek(0)
        np.testing.assert_allclose(np.load(stream)["map"], answers.anomaly.map, atol=1e-3)


class TestPictures:
    def test_objects_are_drawn_where_they_are(self, answers: Answers, panoptic: Panoptic) -> None:
        image = np.full((*HW, 3), 90, np.uint8)
        for picture in (
            detection_overlay(image, answers.detections, legend=False),
            instance_overlay(image, panoptic, legend=False),
        ):
            pixels = np.array(picture)
            assert pixels.shape == image.shape
            assert (pixels[37, 2] == 90).all() or panoptic.segments[37, 2] == 3
            assert (pixels[2, 58] == 90).all()
            assert (pixels[24, 10] != 90).any()

    def test_points_and_legends(self, answers: Answers) -> None:
        image = np.full((*HW, 3), 90, np.uint8)
        pixels = np.array(count_overlay(image, answers.counts, legend=False))
        assert (pixels[15, 12] != 90).any()
        assert (pixels[35, 58] == 90).all()
        assert count_overlay(image, answers.counts).width > HW[1]

    def test_nothing_found_is_said(self) -> None:
        image = np.zeros((*HW, 3), np.uint8)
        nothing = Detections.empty(NAMES, HW, masks=True)
        assert detection_overlay(image, nothing).width > HW[1]
        np.testing.assert_array_equal(np.array(detection_overlay(image, nothing, legend=False)), image)
        assert in_words(record_of(Answers(HW, NAMES, detections=nothing))) == "none"

    def test_densities_without_points_are_tinted(self) -> None:
        density = np.zeros((4, 6), np.float32)
        density[0, 0] = 3
        counts = Counts((ClassCount("cat", 0, 3.0, density, np.zeros((0, 2), np.float32)),), HW)
        pixels = np.array(count_overlay(np.full((*HW, 3), 90, np.uint8), counts, legend=False))
        assert (pixels[0, 0] != 90).any()
        assert (pixels[-1, -1] == 90).all()


class TestWriters:
    def test_every_format_of_every_task(self, answers: Answers) -> None:
        writers = build_writers(["labels", "overlay", "scores", "coco", "panoptic", "yolo"], TASKS)
        assert len({each.kind for each in writers}) == len(writers) == 15
        image = np.zeros((*HW, 3), np.uint8)
        for writer in writers:
            stream = io.BytesIO()
            writer.write(stream, image, answers)
            assert stream.tell() > 20, writer.kind

    def test_what_no_task_has_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="nothing to write"):
            build_writers(["yolo"], ["count"])
        with pytest.raises(ConfigError, match="unknown format"):
            build_writers(["yolo5"], ["detect"])
        kinds = [each.kind for each in build_writers(["labels", "overlay"], ["anomaly"], judged=False)]
        assert kinds == ["overlay_anomaly"]

    def test_records(self, answers: Answers) -> None:
        record = record_of(answers)
        assert json.loads(json.dumps(record)) == record
        assert in_words(record) == (
            "grass 36%, cat 32%; 2 cat, 1 grass; 2 cat; 2 cat; anomalous, score 0.8"
        ), in_words(record)
        assert record["detections"][0]["bbox"] == [5.0, 5.0, 15.0, 20.0]
        with pytest.raises(ConfigError, match="'count'"):
            Answers(HW, NAMES).of("count")
