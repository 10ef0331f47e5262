"""Boxes, instances, counts and "none of these" on scenes of which everything is known."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from ovseg.benchmark.records import Rows
from ovseg.detection_results import Detections
from ovseg.heads.instances import InstanceHead
from ovseg.heads.rejection import Rejection
from ovseg.heads.sam_instances import redraw
from ovseg.heads.segmentation import SegmentationHead
from ovseg.inferencer import Inferencer
from ovseg.metrics.detection import match, overlaps
from ovseg.metrics.ood import ood_report
from ovseg.parts import load_parts
from ovseg.region_route import RegionRoute, SamProposals
from ovseg.regions import SAM_OPTIONS
from ovseg.rle import encode_mask
from ovseg.scenes import Scene, SceneSet
from ovseg.scenes.plan import SPLIT_SETTINGS

#: As `configs/*/*_bundled_scenes.py`.
WINDOWS = {"short_side": 224, "crop": 112, "stride": 56}
METHOD, PLAIN_METHOD = "proxyclip", "maskclip"
#: Scores of being known, see `ovseg.heads.rejection.Rule`.
RULES: tuple[Literal["msp", "maxlogit", "energy", "mcm"], ...] = ("msp", "maxlogit", "energy", "mcm")
#: Every so many pixels count for rejection.
PIXEL_STEP = 4

WHOLE, PLAIN = "whole image", "maskclip, components"
INSTANCES, BOXES, DRAWN, REGIONS = "instances", "detect", "detect + SAM's outlines", "SAM's masks, classified"
COUNT, COUNT_SHOWN, MEAN = "count, all 40 words", "count, the scene's words only", "mean count of val"


@cache
def predictor(method: str = METHOD) -> Inferencer:
    """A method with the bundled models."""
    return Inferencer(method, encoder="bundled", **WINDOWS)  # type: ignore[arg-type]


def objects_of(scenes: SceneSet) -> tuple[str, ...]:
    """The classes that are things."""
    return scenes.classes[: len(scenes.classes) - len(scenes.background_classes)]


def truth_of(scene: Scene, names: tuple[str, ...]) -> Detections:
    """A scene's objects."""
    number = len(scene.names)
    return Detections(
        scene.boxes_xyxy.astype(np.float32).reshape(-1, 4),
        scene.instance_classes.astype(np.int64),
        np.ones(number, np.float32),
        names,
        (scene.image.shape[0], scene.image.shape[1]),
        tuple(encode_mask(scene.instances == each + 1) for each in range(number)),
    )


def matched(found: Detections, truth: Detections) -> dict[str, Any]:
    """A scene's record for `figures.ap50`."""
    order = np.argsort(-found.scores, kind="stable")
    found = found.select(order)
    record: dict[str, Any] = {
        "labels": found.labels.tolist(),
        "scores": found.scores.tolist(),
        "truth": truth.labels.tolist(),
        "number": len(found),
    }
    for kind in ("box", "mask"):
        hits = np.zeros(len(found), bool)
        for label in np.intersect1d(found.labels, truth.labels):
            mine = found.labels == label
            overlap = overlaps(found.select(mine), truth.select(truth.labels == label), kind)
            hits[mine] = match(overlap, 0.5)
        record[kind] = hits.tolist()
    return record


def measure_boxes(seed: int, *, split: str = "test", num_scenes: int = 16, regions: bool = False) -> Rows:
    """Boxes and masks, and how well pixels of classes that nobody named are told from the others.

    Asked are the names of all objects and none of the backgrounds, so that the heads' own background words
    compete. For rejection every other class is named, backgrounds included.

    Args:
        seed: of the scenes.
        split: of the scenes.
        num_scenes: how many.
        regions: also classify SAM's automatic masks, by far the slowest row.
    """
    scenes = SceneSet(split, seed, length=num_scenes)
    names = objects_of(scenes)
    inferencer, plain = predictor(), predictor(PLAIN_METHOD)
    sam: Any = load_parts({"sam": "bundled"})["sam"]
    route = RegionRoute(inferencer, SamProposals(sam, **SAM_OPTIONS))
    words = inferencer.words(names, ("detect",))
    known = inferencer.bank(scenes.classes[::2])[1]
    rows: Rows = {}
    for index in range(num_scenes):
        scene = scenes[index]
        truth = truth_of(scene, names)
        features = inferencer.encode([scene.image])
        (answer,) = inferencer.ask(features, names, ("instances", "detect"))
        found = {
            WHOLE: whole_image(inferencer, features, names, truth.image_hw),
            PLAIN: components(plain, scene.image, names),
            INSTANCES: answer.of("instances").detections(),
            BOXES: answer.of("detect"),
            DRAWN: redraw(answer.of("detect"), sam, sam.embed([scene.image])),
        }
        if regions:
            found[REGIONS] = route.detect(scene.image, features, words)
        for row, each in found.items():
            rows.setdefault(row, []).append(matched(each, truth))
        rows.setdefault("rejection", []).append(rejected(inferencer, features, known, scene.labels))
    return rows


def whole_image(
    inferencer: Inferencer, features: Any, names: tuple[str, ...], image_hw: tuple[int, int]
) -> Detections:
    """The trivial answer: one box around everything, of the class that fits the mean of all patches."""
    mean = F.normalize(features.grid[0].mean(dim=(1, 2)), dim=0)
    cosine = inferencer.bank(names)[1].embeddings @ mean
    best, label = (inferencer.scorer.temperature * cosine).softmax(dim=0).max(dim=0)
    height, width = image_hw
    return Detections(
        np.array([[0, 0, width, height]], np.float32),
        np.array([int(label)], np.int64),
        np.array([float(best)], np.float32),
        names,
        image_hw,
        (encode_mask(np.ones(image_hw, bool)),),
    )


@torch.no_grad()
def components(plain: Inferencer, image: np.ndarray, names: tuple[str, ...]) -> Detections:
    """The simple answer: MaskCLIP's best class of every pixel, in connected pieces; nothing is background."""
    score_map = plain.scorer.score(plain.encode([image]), plain.bank(names)[1])
    whole = InstanceHead(prominence=1.0, min_share=0.0)
    return whole(SegmentationHead()(score_map))[0].detections()


@torch.no_grad()
def rejected(inferencer: Inferencer, features: Any, known: Any, labels: np.ndarray) -> dict[str, Any]:
    """By rule the AUROC of pixels of named classes against others; None where a scene has one sort only."""
    named = labels[::PIXEL_STEP, ::PIXEL_STEP].ravel() % 2 == 0
    score_map = inferencer.scorer.score(features, known)
    record: dict[str, Any] = {"chance": 0.5}
    for rule in RULES:
        pixels = Rejection(rule, threshold=0.0).pixel_scores(score_map)
        scores = pixels[::PIXEL_STEP, ::PIXEL_STEP].cpu().numpy().ravel()
        both = named.any() and not named.all()
        record[rule] = ood_report(scores[named], scores[~named]).auroc if both else None
    return record


def measure_counts(seed: int, *, num_scenes: int = 16, mean_count: float) -> Rows:
    """Numbers of objects: all 40 kinds asked for, and only those that are there.

    Args:
        seed: of the scenes of split "counting".
        num_scenes: how many.
        mean_count: what the trivial answer says, see `mean_count_of_val`.
    """
    scenes = SceneSet("counting", seed, length=num_scenes)
    names = objects_of(scenes)
    inferencer = predictor()
    rows: Rows = {COUNT: [], COUNT_SHOWN: [], MEAN: []}
    for index in range(num_scenes):
        scene = scenes[index]
        features = inferencer.encode([scene.image])
        shown = tuple(sorted(scene.counts))
        found = {
            COUNT: inferencer.ask(features, names, ("count",))[0].of("count").numbers(),
            COUNT_SHOWN: inferencer.ask(features, shown, ("count",))[0].of("count").numbers(),
            MEAN: dict.fromkeys(shown, mean_count),
        }
        for row, numbers in found.items():
            rows[row].append({"found": numbers, "truth": scene.counts})
    return rows


def mean_count_of_val(num_scenes: int = 64) -> float:
    """Mean number of objects of a kind that is there, on validation scenes drawn as those of "counting"."""
    scenes = SceneSet("val", 0, length=num_scenes, settings=SPLIT_SETTINGS["counting"])
    numbers = [n for index in range(num_scenes) for n in scenes[index].counts.values()]
    return float(np.mean(numbers))
