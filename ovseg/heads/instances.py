"""Segmentation to objects: instances of things, one segment for each kind of stuff."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from torch import nn

from ovseg.errors import ConfigError, ShapeError
from ovseg.heads.components import CONVEXITY, Component, find_components
from ovseg.panoptic_results import Panoptic
from ovseg.results import Segmentation


class InstanceHead(nn.Module):
    """The connected components of the class map, split by peaks where objects touch.

    It reads what `SegmentationHead` has decided, so thresholds and redrawn labels count, and it costs no look
    at the scores: the confidence of a pixel is the probability of its class.

    Args:
        min_area: smaller segments are left out, as a share of the image's pixels.
        prominence, convexity: what splits, see `split_touching`; a prominence of 1 splits nothing.
        min_score: segments of smaller mean probability are left out.
        min_share: things are left out whose score is below this share of the surest thing's in the image.
            For average precision over many images, 0 keeps the unsure.
    """

    def __init__(
        self,
        *,
        min_area: float = 0.001,
        prominence: float = 0.3,
        convexity: float = CONVEXITY,
        min_score: float = 0.0,
        min_share: float = 0.5,
    ) -> None:
        super().__init__()
        check_shares(
            min_area=min_area,
            prominence=prominence,
            convexity=convexity,
            min_score=min_score,
            min_share=min_share,
        )
        self.min_area = min_area
        self.prominence = prominence
        self.convexity = convexity
        self.min_score = min_score
        self.min_share = min_share

    def forward(
        self, segmentations: Sequence[Segmentation], things: Sequence[bool | None] | None = None
    ) -> list[Panoptic]:
        """One result per image, its segments in the order of their scores.

        Args:
            segmentations: of `SegmentationHead`.
            things: by class, True for things, False for stuff, None where the vocabulary does not say, which
                counts as a thing. Background classes have no segments.

        Raises:
            ShapeError: `things` are not of these classes.
        """
        return [self._split(each, things) for each in segmentations]

    def _split(self, segmentation: Segmentation, things: Sequence[bool | None] | None) -> Panoptic:
        names, labels = segmentation.names, segmentation.labels
        if things is not None and len(things) != len(names):
            raise ShapeError(f"{len(names)} classes came with {len(things)} thing flags: one for each")
        least = max(round(self.min_area * labels.size), 1)
        found: list[tuple[Component, int, bool]] = []
        shown = np.where(labels == segmentation.void, 0, labels.astype(np.int32) + 1)
        for label, place in enumerate(ndimage.find_objects(shown)):
            if place is None or label in segmentation.background:
                continue
            mask, confidence = labels[place] == label, segmentation.confidence[place]
            corner_xy = place[1].start, place[0].start
            is_thing = things is None or things[label] is not False
            if is_thing:
                parts = find_components(
                    mask,
                    confidence,
                    min_area_px=least,
                    prominence=self.prominence,
                    convexity=self.convexity,
                    offset_xy=corner_xy,
                )
                found.extend((each, label, True) for each in parts)
            elif mask.sum() >= least:
                whole = Component(
                    corner_xy[1],
                    corner_xy[0],
                    mask,
                    float(confidence[mask].mean(dtype=np.float64)),
                    corner_xy,
                )
                found.append((whole, label, False))
        surest = max((part.score for part, _, is_thing in found if is_thing), default=0.0)
        found = [
            (part, label, is_thing)
            for part, label, is_thing in found
            if part.score >= max(self.min_score, self.min_share * surest if is_thing else 0.0)
        ]
        found.sort(key=lambda each: (-each[0].score, each[0].box_xyxy))  # whatever the order of the classes
        segments = np.zeros(labels.shape, np.int32)
        for number, (part, _, _) in enumerate(found, start=1):
            left, top, right, bottom = part.box_xyxy
            segments[top:bottom, left:right][part.mask] = number
        return Panoptic(
            segments,
            np.array([label for _, label, _ in found], np.int64),
            np.array([part.score for part, _, _ in found], np.float32),
            np.array([is_thing for _, _, is_thing in found], bool),
            names,
        )


def check_shares(**options: float) -> None:
    """Raises ConfigError for an option that is not between 0 and 1."""
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{name} is a probability or share between 0 and 1, got {value}")
