"""One score map, four heads: what is asked of features that are encoded already.

Every task reads the same features. Segmentation gives each pixel a class of those that were named. To say
that there is nothing, the other tasks need something that competes: `instances`, `detect` and `count` add
background words to a vocabulary without a background, and `anomaly` compares a thing in order with one out of
order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ovseg.answers import Answers, Task
from ovseg.detection_results import Detections
from ovseg.errors import ConfigError
from ovseg.heads.anomaly import AnomalyHead
from ovseg.heads.background import joined, likely_scenes, with_background
from ovseg.heads.counting import CountingHead, countable_classes
from ovseg.heads.detection import DetectionHead, work_hw
from ovseg.heads.instances import InstanceHead
from ovseg.heads.regions import describe
from ovseg.heads.sam_instances import redraw
from ovseg.heads.segmentation import SegmentationHead
from ovseg.panoptic_results import Panoptic
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures, TextBank

#: Features and words to a score map.
Score = Callable[[DenseFeatures, TextBank], ScoreMap]


@dataclass(frozen=True)
class Words:
    """A vocabulary as the tasks need it.

    Attributes:
        asked: the classes that were asked for.
        closed: the same with a background; `asked` itself where it has one.
        backdrop: the words of that background.
        scenes: of which an image's likeliest join them; None where nobody asks.
        states: normal and abnormal, for anomaly; None where nobody asks.
        things: by class of `asked`: thing, stuff, or not known.
        colors: by class of `asked`.
        attributes: a second vocabulary, of which any number may hold for an object; None where nobody asks.
    """

    asked: TextBank
    closed: TextBank | None = None
    backdrop: TextBank | None = None
    scenes: TextBank | None = None
    states: TextBank | None = None
    things: tuple[bool | None, ...] = ()
    colors: tuple[tuple[int, int, int] | None, ...] | None = None
    attributes: TextBank | None = None


class TaskHeads(nn.Module):
    """A head for each task.

    Args:
        segment, instances, detect, anomaly, count: each by default as its class makes it.
        sam: a `SamEncoder` that draws the outlines of instances and boxes; None: as the map has them.
        scenes: how many scene names, those that fit the image best, join the background words (BIRDet).
    """

    def __init__(
        self,
        segment: SegmentationHead | None = None,
        instances: InstanceHead | None = None,
        detect: DetectionHead | None = None,
        anomaly: AnomalyHead | None = None,
        count: CountingHead | None = None,
        *,
        sam: Any = None,
        scenes: int = 0,
    ) -> None:
        super().__init__()
        self.segment = segment or SegmentationHead()
        self.instances = instances or InstanceHead()
        self.detect = detect or DetectionHead()
        self.anomaly = anomaly or AnomalyHead()
        self.count = count or CountingHead()
        self.sam = sam
        if scenes < 0:
            raise ConfigError(f"scenes is a number of scene names, 0 or more, got {scenes}")
        self.scenes = scenes

    def forward(
        self,
        features: DenseFeatures,
        words: Words,
        tasks: Sequence[Task],
        score: Score,
        plain_score: Score,
    ) -> list[Answers]:
        """One answer per image.

        Args:
            features: of a batch.
            words: with what the tasks need.
            tasks: what is asked.
            score: features and words to a refined score map.
            plain_score: the same without refinement, for anomaly: its classes are states of one thing, which
                have no outlines.
        """
        found: dict[str, Sequence[Any]] = {}
        if "segment" in tasks:
            found["segmentation"] = self.segment(score(features, words.asked), colors=words.colors)
        if {"instances", "detect", "count"} & set(tasks):
            found |= self._objects_in_scenes(features, words, tasks, score)
        if "anomaly" in tasks:
            if words.states is None:
                raise ConfigError("anomaly asks for words of a thing in order and out of order")
            found["anomaly"] = self.anomaly(plain_score(features, words.states))
        names, image_hw = words.asked.names, features.resampling.size_hw
        return [
            Answers(image_hw, names, **{what: each[index] for what, each in found.items()})
            for index in range(len(features.grid))
        ]

    def _objects_in_scenes(
        self, features: DenseFeatures, words: Words, tasks: Sequence[Task], score: Score
    ) -> dict[str, Sequence[Any]]:
        """What stands out from a background, to which each image adds scenes of its own."""
        if not self.scenes or words.scenes is None or words.backdrop is None or features.image is None:
            return self._objects(features, words, tasks, score)
        each = []
        for index, image in enumerate(features.image):
            likely = likely_scenes(image, words.scenes, self.scenes)
            closed = with_background(words.asked, joined(words.backdrop, likely))
            each.append(self._objects(features.select(index), replace(words, closed=closed), tasks, score))
        return {what: [one[what][0] for one in each] for what in each[0]}

    def _objects(
        self, features: DenseFeatures, words: Words, tasks: Sequence[Task], score: Score
    ) -> dict[str, Sequence[Any]]:
        """What stands out from a background."""
        bank = words.closed or words.asked
        things = (*(words.things or (None,) * len(words.asked.names)),) + (False,) * (
            len(bank.names) - len(words.asked.names)
        )
        score_map = score(features, bank)
        found: dict[str, Sequence[Any]] = {}
        if "instances" in tasks:
            panoptics = self.instances(self.segment(score_map), things)
            found["instances"] = [
                self._drawn(_asked(each, words), features, index) for index, each in enumerate(panoptics)
            ]
        # Refinement decides labels, which both tasks then have to read; else each looks for itself.
        small = None
        if score_map.revisions and {"detect", "count"} & set(tasks):
            small = self.segment(score_map, work_hw(score_map.image_hw))
        if "detect" in tasks:
            boxes = self.detect(score_map, things=things, segmentations=small)
            found["detections"] = [
                with_attributes(self._redrawn(_asked(each, words), features, index), features, words, index)
                for index, each in enumerate(boxes)
            ]
        if "count" in tasks:
            wanted = countable_classes(bank, things)
            found["counts"] = self.count(score_map, classes=wanted, segmentations=small)
        return found

    def _drawn(self, panoptic: Panoptic, features: DenseFeatures, index: int) -> Panoptic:
        if self.sam is None:
            return panoptic
        return panoptic.with_things(self._redrawn(panoptic.detections(), features, index))

    def _redrawn(self, detections: Detections, features: DenseFeatures, index: int) -> Detections:
        if self.sam is None or not len(detections):
            return detections
        embedded, at = features.sam, index
        if embedded is None:
            if features.pictures is None:
                raise ConfigError("SAM looks at the image, and these features came without their pictures")
            embedded, at = self.sam.embed([features.pictures.full[index]]), 0
        return redraw(detections, self.sam, embedded, at)


def with_attributes(
    detections: Detections, features: DenseFeatures, words: Words, index: int = 0
) -> Detections:
    """The same objects with the probability of each attribute, where attributes were asked for."""
    if words.attributes is None:
        return detections
    return describe(detections, features, words.attributes, index=index)


def _asked(result: Any, words: Words) -> Any:
    """A result by the names that were asked for: nothing is ever of the background that was added."""
    return replace(result, names=words.asked.names)
