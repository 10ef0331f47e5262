"""Score map to boxes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from scipy import ndimage
from torch import nn
from torchvision.ops import batched_nms

from ovseg.detection_results import Detections
from ovseg.errors import ConfigError, ShapeError
from ovseg.heads.components import CONVEXITY, Component, find_components
from ovseg.heads.instances import check_shares
from ovseg.heads.segmentation import SegmentationHead
from ovseg.results import Segmentation
from ovseg.rle import Rle, encode_mask
from ovseg.score_map import ScoreMap

#: Objects are sought on a picture of at most so many pixels; boxes and masks are scaled up.
MAX_PIXELS = 512 * 512
#: The surest so many go on to suppression.
MAX_CANDIDATES = 1000


class DetectionHead(nn.Module):
    """Connected pixels of a class, split by peaks, as boxes with masks.

    A pixel belongs to its best class, and to others that come near it (`rivals`), where the class is likely
    enough; where a background class is best, to none. So "nothing found" needs a background in the words
    (`ovseg.heads.background.with_background`) or thresholds: among the classes alone, one is always best.

    After non-maximum suppression within each class follow two rules of BIRDet (no public code; the numbers
    are ours): a box that lies in a larger, surer one of its class is a part of that object, and a box over
    most of the image must hold more probability of its class than of the background, else it is the scene.

    Args:
        threshold: least probability of a pixel; a class's own in the vocabulary comes first.
        rivals: 1 gives each pixel to its best class only; less, also to classes of at least this share of the
            best one's probability, so that objects may overlap and synonyms both show.
        min_area: smaller objects are left out, as a share of the image's pixels.
        prominence, convexity: what splits, see `split_touching`; a prominence of 1 splits nothing.
        top_share: a score is the mean probability over this share of an object's pixels, the surest.
        min_score: objects of smaller score are left out.
        min_share: objects are left out whose score is below this share of the surest object's in the image.
            For average precision over many images, 0 keeps the unsure.
        nms_iou: of two boxes of one class that overlap more, the surer stays.
        part_share: a box with more of its area in a larger, surer one of its class is a part; 1 keeps parts.
        scene_area: a box over more of the image than this may be the scene; 1 keeps all.
        max_detections: of one image, the surest.
        masks: whether results have masks.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.0,
        rivals: float = 1.0,
        min_area: float = 0.001,
        prominence: float = 0.3,
        convexity: float = CONVEXITY,
        top_share: float = 0.2,
        min_score: float = 0.0,
        min_share: float = 0.5,
        nms_iou: float = 0.5,
        part_share: float = 0.9,
        scene_area: float = 0.5,
        max_detections: int = 100,
        masks: bool = True,
    ) -> None:
        super().__init__()
        check_shares(
            threshold=threshold,
            rivals=rivals,
            min_area=min_area,
            prominence=prominence,
            convexity=convexity,
            top_share=top_share,
            min_score=min_score,
            min_share=min_share,
            nms_iou=nms_iou,
            part_share=part_share,
            scene_area=scene_area,
        )
        if max_detections < 1:
            raise ConfigError(f"max_detections must be at least 1, got {max_detections}")
        self.segment = SegmentationHead(threshold=threshold)
        self.threshold = threshold
        self.rivals = rivals
        self.min_area = min_area
        self.prominence = prominence
        self.convexity = convexity
        self.top_share = top_share
        self.min_score = min_score
        self.min_share = min_share
        self.nms_iou = nms_iou
        self.part_share = part_share
        self.scene_area = scene_area
        self.max_detections = max_detections
        self.masks = masks

    def forward(
        self,
        score_map: ScoreMap,
        size_hw: tuple[int, int] | None = None,
        *,
        segmentations: Sequence[Segmentation] | None = None,
        things: Sequence[bool | None] | None = None,
    ) -> list[Detections]:
        """One result per image, the surest objects first.

        Args:
            score_map: of a batch.
            size_hw: the image's size, by default where the map leads.
            segmentations: what `SegmentationHead` made of the same map, where it is there already; its
                thresholds count then.
            things: by class; those that are False (stuff) have no boxes.
        """
        size_hw = size_hw or score_map.image_hw
        names = score_map.bank.names
        if things is not None and len(things) != len(names):
            raise ShapeError(f"{len(names)} classes came with {len(things)} thing flags: one for each")
        if segmentations is None:
            segmentations = self.segment(score_map, work_hw(size_hw))
        stuff = () if things is None else tuple(k for k, each in enumerate(things) if each is False)
        barred = score_map.bank.background.union(stuff)
        return [
            self._detect(score_map, index, each, barred, size_hw) for index, each in enumerate(segmentations)
        ]

    def _detect(
        self,
        score_map: ScoreMap,
        index: int,
        decided: Segmentation,
        barred: frozenset[int],
        size_hw: tuple[int, int],
    ) -> Detections:
        sources = _best_class(decided) if self.rivals == 1 else self._near_best(score_map, index, decided)
        least = max(round(self.min_area * decided.labels.size), 1)
        nothing = np.where(np.isin(decided.labels, list(decided.background)), decided.confidence, 0)
        found: list[tuple[Component, int]] = []
        best = 0.0
        for label, mask, probability, corner_xy in sources:
            if label in barred:
                continue
            parts = find_components(
                mask,
                probability,
                min_area_px=least,
                prominence=self.prominence,
                convexity=self.convexity,
                top_share=self.top_share,
                least_peak=max(self.min_score, self.min_share * best),  # no part could be surer than that
                offset_xy=corner_xy,
            )
            for part in parts:
                if part.score >= self.min_score and not self._is_scene(part, nothing):
                    found.append((part, label))
                    best = max(best, part.score)
        found.sort(key=lambda each: (-each[0].score, each[0].box_xyxy))  # whatever the order of the classes
        found = [each for each in found if each[0].score >= self.min_share * best]
        return self._result(found[:MAX_CANDIDATES], decided, size_hw)

    def _near_best(
        self, score_map: ScoreMap, index: int, decided: Segmentation
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, tuple[int, int]]]:
        """`(class, mask, probability, corner)` of every class that comes near the best one somewhere."""
        device = score_map.cosine.device
        outside = np.isin(decided.labels, [*decided.background, decided.void])
        limit = torch.from_numpy(np.where(outside, np.inf, self.rivals * decided.confidence)).to(device)
        own = score_map.bank.thresholds or (None,) * len(decided.names)
        for classes, pictures in score_map.class_pictures(index, decided.image_hw):
            least = [self.threshold if own[k] is None else own[k] for k in classes.tolist()]
            near = (pictures >= limit) & (pictures >= pictures.new_tensor(least)[:, None, None])
            for place in near.flatten(1).any(dim=1).nonzero()[:, 0].tolist():
                yield int(classes[place]), near[place].cpu().numpy(), pictures[place].cpu().numpy(), (0, 0)

    def _is_scene(self, part: Component, nothing: np.ndarray) -> bool:
        left, top, right, bottom = part.box_xyxy
        area = (right - left) * (bottom - top)
        if area <= self.scene_area * nothing.size:
            return False
        return float(nothing[top:bottom, left:right].sum()) > part.score * float(part.mask.sum())

    def _result(
        self, found: list[tuple[Component, int]], decided: Segmentation, size_hw: tuple[int, int]
    ) -> Detections:
        if not found:
            return Detections.empty(decided.names, size_hw, masks=self.masks)
        scale = np.array([size_hw[1] / decided.image_hw[1], size_hw[0] / decided.image_hw[0]] * 2)
        boxes = np.array([part.box_xyxy for part, _ in found]) * scale
        boxes = np.round(boxes).astype(np.float32)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        scores = np.array([part.score for part, _ in found], np.float32)
        labels = np.array([label for _, label in found], np.int64)
        kept = suppress(
            boxes,
            scores,
            labels,
            nms_iou=self.nms_iou,
            part_share=self.part_share,
            max_detections=self.max_detections,
        )
        masks = None
        if self.masks:
            masks = tuple(_scaled_mask(found[each][0].mask, boxes[each], size_hw) for each in kept)
        return Detections(boxes[kept], labels[kept], scores[kept], decided.names, size_hw, masks)


def work_hw(size_hw: tuple[int, int], max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """The size of the picture in which objects are sought: the image's, or a smaller one of its shape."""
    factor = min(1.0, math.sqrt(max_pixels / (size_hw[0] * size_hw[1])))
    return max(round(size_hw[0] * factor), 1), max(round(size_hw[1] * factor), 1)


def suppress(
    boxes_xyxy: Float32[np.ndarray, "N 4"],
    scores: Float32[np.ndarray, " N"],
    labels: Int64[np.ndarray, " N"],
    *,
    nms_iou: float,
    part_share: float,
    max_detections: int,
) -> Int64[np.ndarray, " n"]:
    """Which boxes stay, the surest first; of equals, the one given first.

    Args:
        boxes_xyxy, scores, labels: candidates.
        nms_iou: of two boxes of one class that overlap more, the surer stays.
        part_share: see `partial_objects`; 1 keeps parts.
        max_detections: how many at most.
    """
    order = np.argsort(-scores, kind="stable")
    tensors = (torch.from_numpy(each[order]) for each in (boxes_xyxy, scores, labels))
    kept = order[np.sort(batched_nms(*tensors, nms_iou).numpy())]
    if part_share < 1:
        kept = kept[~partial_objects(boxes_xyxy[kept], scores[kept], labels[kept], part_share)]
    return kept[:max_detections]


def partial_objects(
    boxes_xyxy: Float32[np.ndarray, "N 4"],
    scores: Float32[np.ndarray, " N"],
    labels: Int64[np.ndarray, " N"],
    part_share: float,
) -> Bool[np.ndarray, " N"]:
    """Which boxes are parts: `|b_i & b_j| / |b_i| > part_share`, b_j larger, no less sure, of its class.

    Overlap over union, which suppression asks for, is small where one box is much larger than the other.

    Source: BIRDet's partial object suppression; its threshold is not public.
    """
    area = np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=1)
    low = np.maximum(boxes_xyxy[:, None, :2], boxes_xyxy[None, :, :2])
    high = np.minimum(boxes_xyxy[:, None, 2:], boxes_xyxy[None, :, 2:])
    shared = np.prod((high - low).clip(min=0), axis=2)
    rival = (labels[:, None] == labels) & (area[:, None] < area) & (scores[:, None] <= scores)
    return (rival & (shared > part_share * area[:, None])).any(axis=1)


def _best_class(
    decided: Segmentation,
) -> Iterator[tuple[int, np.ndarray, np.ndarray, tuple[int, int]]]:
    """`(class, mask, probability, corner)` of every class that is best somewhere, cropped to its extent."""
    shown = np.where(decided.labels == decided.void, 0, decided.labels.astype(np.int32) + 1)
    for label, place in enumerate(ndimage.find_objects(shown)):
        if place is not None:
            corner_xy = place[1].start, place[0].start
            yield label, decided.labels[place] == label, decided.confidence[place], corner_xy


def _scaled_mask(mask: np.ndarray, box: np.ndarray, size_hw: tuple[int, int]) -> Rle:
    left, top, right, bottom = box.astype(int).tolist()
    size_wh = (right - left, bottom - top)
    if size_wh != mask.shape[::-1]:
        mask = cv2.resize(mask.astype(np.float32), size_wh, interpolation=cv2.INTER_LINEAR) >= 0.5
    return encode_mask(mask, at_xy=(left, top), image_hw=size_hw)
