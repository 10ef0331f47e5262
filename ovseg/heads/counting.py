"""Score map to numbers of objects, without training: blobs, split where they touch.

Source: the zero-shot counters on similarity maps, such as Shi et al., "Training-free Object Counting with
Prompts", WACV 2024, arXiv 2307.00038: threshold by Otsu, components, peaks at the scale of the objects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ovseg.counting_results import ClassCount, Counts, nothing_found
from ovseg.errors import ConfigError, ShapeError
from ovseg.heads.blobs import Blobs, find_blobs, two_sides
from ovseg.results import Segmentation
from ovseg.score_map import ScoreMap
from ovseg.structures import TextBank

#: A vocabulary of one class always has probability 1: its map is read as logits, and where those above Otsu's
#: threshold exceed those below by less than this, nothing stands out.
LEAST_LOGIT_GAP = 1.0


def countable_classes(bank: TextBank, things: Sequence[bool | None] | None = None) -> tuple[int, ...]:
    """The classes that are counted unless others are asked for: no background, and no stuff.

    Args:
        bank: the words.
        things: by class, True for things, False for stuff, None where not known, which counts as thing.

    Raises:
        ShapeError: there is not one flag for each class.
    """
    if things is not None and len(things) != len(bank.names):
        raise ShapeError(f"{len(bank.names)} classes came with {len(things)} thing flags")
    flags = things or (None,) * len(bank.names)
    return tuple(k for k, thing in enumerate(flags) if k not in bank.background and thing is not False)


class CountingHead(nn.Module):
    """Objects of each class: connected blobs of its probability, split by their peaks.

    Everything is measured in the map's own grid cells, so that the numbers do not depend on the size that
    is asked for.

    Args:
        threshold: least probability of a class's pixels. A class's own threshold in the vocabulary comes
            first.
        samples: samples of the map per grid cell, a side.
        prominence: a peak is an object of its own where the way to any higher one dips by this share of the
            typical height.
        least_cells: smaller objects, in grid cells, are dropped.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.0,
        samples: int = 4,
        prominence: float = 0.3,
        least_cells: float = 0.5,
    ) -> None:
        super().__init__()
        for name, value in (("threshold", threshold), ("prominence", prominence)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is a share between 0 and 1, got {value}")
        if samples < 1 or least_cells < 0:
            raise ConfigError(f"samples must be at least 1 and least_cells 0, got {samples}, {least_cells}")
        self.threshold = threshold
        self.samples = samples
        self.prominence = prominence
        self.least_cells = least_cells

    def forward(
        self,
        score_map: ScoreMap,
        size_hw: tuple[int, int] | None = None,
        *,
        classes: Sequence[int] | None = None,
        segmentations: Sequence[Segmentation] | None = None,
    ) -> list[Counts]:
        """One result per image.

        Args:
            score_map: of a batch.
            size_hw: pixels that points refer to, by default where the map leads.
            classes: those to count, by default `countable_classes` of the map's bank.
            segmentations: one for each image, if they are there: their labels (revised by SAM, say) decide
                what a pixel is. Otherwise the map's best class does.

        Raises:
            ConfigError: a class that does not exist.
            ShapeError: segmentations and images differ in number.
        """
        bank = score_map.bank
        wanted = sorted(set(countable_classes(bank) if classes is None else classes))
        if any(not 0 <= k < len(bank.names) for k in wanted):
            raise ConfigError(f"classes are 0..{len(bank.names) - 1}, asked to count {wanted}")
        if segmentations is not None and len(segmentations) != len(score_map):
            raise ShapeError(f"{len(score_map)} images came with {len(segmentations)} segmentations")
        size_hw = size_hw or score_map.image_hw
        grid_hw = self._grid_hw(score_map)
        results = []
        for index in range(len(score_map)):
            segmentation = None if segmentations is None else segmentations[index]
            labels = self._labels(score_map.select(index), grid_hw, segmentation)
            found = self._found(score_map, index, labels, wanted)
            counted = tuple(_as_count(bank.names[k], k, found.get(k), grid_hw, size_hw) for k in wanted)
            results.append(Counts(counted, size_hw))
        return results

    def _grid_hw(self, score_map: ScoreMap) -> tuple[int, int]:
        """Square samples, `samples` to the side of an average grid cell, at most one a pixel."""
        height, width = score_map.image_hw
        cells = score_map.cosine.shape[-2] * score_map.cosine.shape[-1]
        side_px = max(math.sqrt(height * width / cells) / self.samples, 1.0)
        return max(round(height / side_px), 1), max(round(width / side_px), 1)

    def _labels(
        self, one: ScoreMap, grid_hw: tuple[int, int], segmentation: Segmentation | None
    ) -> Int[np.ndarray, "h w"]:
        """What each sample is; -1 where no class is likely enough."""
        if segmentation is not None:
            given = segmentation.labels.astype(np.float32)
            return cv2.resize(given, grid_hw[::-1], interpolation=cv2.INTER_NEAREST).astype(np.int64)
        labels, confidence = one.labels(grid_hw)
        own = one.bank.thresholds or (None,) * len(one.bank.names)
        limits = confidence.new_tensor([self.threshold if each is None else each for each in own])
        return torch.where(confidence < limits[labels], -1, labels)[0].cpu().numpy()

    def _found(
        self, score_map: ScoreMap, index: int, labels: Int[np.ndarray, "h w"], wanted: Sequence[int]
    ) -> dict[int, Blobs]:
        """The blobs of the wanted classes that are there at all."""
        there = set(np.unique(labels).tolist()) & set(wanted)
        found: dict[int, Blobs] = {}
        if not there:
            return found
        grid_hw = (labels.shape[0], labels.shape[1])
        least_area = self.least_cells * labels.size / score_map.cosine[index, 0].numel()
        if len(score_map.bank.names) == 1:
            score, stands_out = _contrast(score_map, index, grid_hw)
            inside = (labels == 0) & stands_out
            return {0: find_blobs(score, inside, prominence=self.prominence, least_area=least_area)}
        for classes, pictures in score_map.class_pictures(index, grid_hw):
            for k, picture in zip(classes.tolist(), pictures, strict=True):
                if k in there:
                    found[k] = find_blobs(
                        picture.float().cpu().numpy(),
                        labels == k,
                        prominence=self.prominence,
                        least_area=least_area,
                    )
        return found


def _contrast(
    score_map: ScoreMap, index: int, grid_hw: tuple[int, int]
) -> tuple[Float[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """An only class against the rest of its own map: its score in [0, 1], and where it stands out."""
    logits: Tensor = score_map.per_class(score_map.logits[index])
    picture = score_map.pictures(index, logits, grid_hw)[0].float().cpu().numpy()
    threshold, below, above = two_sides(picture)
    if above - below < LEAST_LOGIT_GAP:
        return np.zeros(grid_hw, np.float32), np.zeros(grid_hw, bool)
    return torch.from_numpy(picture - np.float32(threshold)).sigmoid().numpy(), picture > threshold


def _as_count(
    name: str, index: int, blobs: Blobs | None, grid_hw: tuple[int, int], size_hw: tuple[int, int]
) -> ClassCount:
    if blobs is None or not blobs.number:
        return nothing_found(name, index, grid_hw)
    per_sample_xy = np.array([size_hw[1] / grid_hw[1], size_hw[0] / grid_hw[0]])
    return ClassCount(
        name=name,
        class_index=index,
        number=float(blobs.number),
        density=blobs.density,
        points_xy=((blobs.centres_yx[:, ::-1] + 0.5) * per_sample_xy).astype(np.float32),
        uncertainty=blobs.uncertainty,
    )
