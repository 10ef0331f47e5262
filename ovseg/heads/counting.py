"""Score map to numbers of objects, without training: connected pixels of a class, split where objects touch.

Source: the zero-shot counters on similarity maps, such as Shi et al., "Training-free Object Counting with
Prompts", WACV 2024, arXiv 2307.00038: what is similar enough, in components, with peaks for objects.
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
from ovseg.heads.components import CONVEXITY, Component, find_components
from ovseg.heads.instances import check_shares
from ovseg.results import Segmentation
from ovseg.score_map import ScoreMap
from ovseg.structures import TextBank

#: Where the two sides of a picture differ by less than this share of the upper, it is flat and being the best
#: class means nothing: then an object must be surer than `SURE`, as one that fills the picture is.
FLAT, SURE = 0.2, 2 / 3
#: Objects smaller than this share of the median one of their class are crumbs.
CRUMB = 0.2
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
    """Objects of each class: its connected pixels, split where objects touch (`find_components`).

    Everything is measured in the map's own grid cells, so that the numbers do not depend on the size that
    is asked for.

    Args:
        threshold: least probability of a class's pixels. A class's own threshold in the vocabulary comes
            first.
        samples: samples of the map per grid cell, a side.
        prominence, convexity: see `split_touching`.
        least_cells: smaller objects, in grid cells, are dropped.
        top_share: an object's score is the mean probability over this share of its samples, the surest.
        min_share: objects are dropped whose score is below this share of the surest object's in the image:
            in any picture, some of the words asked for are best at some spot.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.0,
        samples: int = 4,
        prominence: float = 0.2,
        convexity: float = CONVEXITY,
        least_cells: float = 0.5,
        top_share: float = 0.2,
        min_share: float = 0.5,
    ) -> None:
        super().__init__()
        check_shares(
            threshold=threshold,
            prominence=prominence,
            convexity=convexity,
            top_share=top_share,
            min_share=min_share,
        )
        if samples < 1 or least_cells < 0:
            raise ConfigError(f"samples must be at least 1 and least_cells 0, got {samples}, {least_cells}")
        self.threshold = threshold
        self.samples = samples
        self.prominence = prominence
        self.convexity = convexity
        self.least_cells = least_cells
        self.top_share = top_share
        self.min_share = min_share

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
            best = max((each.score for objects in found.values() for each, _ in objects), default=0.0)
            counted = []
            for k in wanted:
                objects = [each for each in found.get(k, ()) if each[0].score >= self.min_share * best]
                counted.append(_as_count(bank.names[k], k, objects, grid_hw, size_hw))
            results.append(Counts(tuple(counted), size_hw))
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
    ) -> dict[int, list[tuple[Component, Float[np.ndarray, "_ _"]]]]:
        """The objects of the wanted classes that are there at all, each with the scores of its samples."""
        there = set(np.unique(labels).tolist()) & set(wanted)
        grid_hw = (labels.shape[0], labels.shape[1])
        least = self.least_cells * labels.size / score_map.cosine[index, 0].numel()
        if there and len(score_map.bank.names) == 1:
            score, stands_out = _contrast(score_map, index, grid_hw)
            return {0: self._objects((labels == 0) & stands_out, score, least)}
        found = {}
        for classes, pictures in score_map.class_pictures(index, grid_hw) if there else ():
            for k, picture in zip(classes.tolist(), pictures, strict=True):
                if k in there:
                    score = picture.float().cpu().numpy()
                    _, below, above = two_sides(score)
                    sure = score > (SURE if above - below < FLAT * above else 0.0)
                    found[k] = self._objects((labels == k) & sure, score, least)
        return found

    def _objects(
        self, mask: Bool[np.ndarray, "h w"], score: Float[np.ndarray, "h w"], least: float
    ) -> list[tuple[Component, Float[np.ndarray, "_ _"]]]:
        parts = find_components(
            mask,
            score,
            min_area_px=max(math.ceil(least), 1),
            prominence=self.prominence,
            convexity=self.convexity,
            top_share=self.top_share,
        )
        areas = [int(each.mask.sum()) for each in parts]
        kept = [each for each, area in zip(parts, areas, strict=True) if area >= CRUMB * np.median(areas)]
        return [(each, score[each.place]) for each in kept]


def two_sides(values: Float[np.ndarray, "h w"]) -> tuple[float, float, float]:
    """Otsu's threshold within the 5 to 95 % range, and the means below and above it.

    The threshold is at least the mean plus a standard deviation, or halfway up where that is less: objects on
    less than 5 % of a picture are outside of that range.

    Deviations from plain mean plus deviation: "halfway up", since densely packed objects exceed it.
    """
    low, high = np.percentile(values, (5, 95))
    threshold = low
    if high > low:
        levels = (((values - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)
        level = cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)[0]  # upper levels are above it
        threshold = low + (high - low) * (level + 1) / 255
    halfway = (float(values.min()) + float(values.max())) / 2
    threshold = float(max(threshold, min(values.mean() + values.std(), halfway)))
    upper = values > threshold
    if not upper.any() or upper.all():
        mean = float(values.mean())
        return threshold, mean, mean
    return threshold, float(values[~upper].mean()), float(values[upper].mean())


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
    name: str,
    index: int,
    objects: Sequence[tuple[Component, Float[np.ndarray, "_ _"]]],
    grid_hw: tuple[int, int],
    size_hw: tuple[int, int],
) -> ClassCount:
    """The number, with one object's worth of density over each object, in proportion to its score.

    The uncertainty is half of the gap between the estimates: objects, connected pieces, and all of the score
    over that of the median object.
    """
    if not objects:
        return nothing_found(name, index, grid_hw)
    density = np.zeros(grid_hw, np.float32)
    centres, masses = [], []
    for each, score in objects:
        weight = np.where(each.mask, np.maximum(score.astype(np.float64), 1e-12), 0)
        mass = float(weight.sum())
        density[each.place] += weight / mass
        ys, xs = np.indices(weight.shape)
        centres.append((each.left + (xs * weight).sum() / mass, each.top + (ys * weight).sum() / mass))
        masses.append(mass)
    estimates = len(objects), len({each.piece for each, _ in objects}), sum(masses) / float(np.median(masses))
    per_sample_xy = np.array([size_hw[1] / grid_hw[1], size_hw[0] / grid_hw[0]])
    return ClassCount(
        name=name,
        class_index=index,
        number=float(len(objects)),
        density=density,
        points_xy=((np.array(centres) + 0.5) * per_sample_xy).astype(np.float32),
        uncertainty=(max(estimates) - min(estimates)) / 2,
    )
