"""Objects in one picture of scores: components of what is high, split by peaks where objects touch.

All lengths and areas are in samples of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

#: Where the two sides of a picture differ by less than this share of the upper, it is flat and a threshold of
#: its own means nothing: then an object must be surer than `SURE`, as one that fills the picture is.
FLAT, SURE = 0.2, 2 / 3
#: Parts smaller than this share of the median part are crumbs.
CRUMB = 0.2
_NEIGHBOURS = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class Blobs:
    """Objects found.

    Attributes:
        parts: `(h, w)`, 1..n for the objects, 0 elsewhere.
        centres_yx: `(n, 2)`, means of their samples, weighted by score; the first sample is (0, 0).
        density: `(h, w)`, one object's worth over each part, in proportion to the score.
        components: number of connected pieces before splitting.
        by_mass: all of the score over that of the median object.
    """

    parts: Int[np.ndarray, "h w"]
    centres_yx: Float[np.ndarray, "n 2"]
    density: Float[np.ndarray, "h w"]
    components: int
    by_mass: float

    @property
    def number(self) -> int:
        """How many objects."""
        return len(self.centres_yx)

    @property
    def uncertainty(self) -> float:
        """Half of the gap between the estimates: split parts, connected pieces, and mass."""
        estimates = (self.number, self.components, self.by_mass)
        return (max(estimates) - min(estimates)) / 2


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


def find_blobs(
    score: Float[np.ndarray, "h w"],
    allowed: Bool[np.ndarray, "h w"],
    *,
    prominence: float,
    least_area: float,
) -> Blobs:
    """The objects of a score picture.

    Args:
        score: in [0, 1].
        allowed: samples that may belong to an object.
        prominence: see `peaks`.
        least_area: smaller objects are dropped.
    """
    threshold, below, above = two_sides(score)
    inside = allowed & (score > (SURE if above - below < FLAT * above else threshold))
    _, components, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= max(least_area, 1)
    large[0] = False
    components = np.where(large[components], components, 0)
    if not large.any():
        return _gather(np.zeros_like(components), score, 0)
    parts = split(components, peaks(score, components, prominence))
    areas = np.bincount(parts.ravel())[1:]
    kept = areas >= max(CRUMB * float(np.median(areas)), least_area)
    parts = np.concatenate([[0], np.where(kept, kept.cumsum(), 0)])[parts]
    return _gather(parts, score, len(np.unique(components[parts > 0])))


def peaks(
    score: Float[np.ndarray, "h w"], components: Int[np.ndarray, "h w"], prominence: float
) -> Int[np.ndarray, "n 2"]:
    """`(y, x)` of an object each, at least one in every component.

    A peak is looked for in the score, smoothed to a sixth of the typical object, times the distance to the
    border in units of the typical radius (up to 1): score dips between objects, and shapes narrow there. It
    counts where every way to a higher one descends by `prominence`, and no higher one is nearer than the
    typical radius.
    """
    count = components.max()
    inside = components > 0
    # The border of the picture is a border of objects too; else one that fills it would be infinitely far.
    padded = np.pad(inside.astype(np.uint8), 1)
    depth = np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE))[1:-1, 1:-1]
    deepest = np.zeros(count + 1)
    np.maximum.at(deepest, components.ravel(), depth.ravel())
    radius = float(np.median(deepest[np.unique(components[inside])]))
    smooth: np.ndarray = np.asarray(
        cv2.GaussianBlur((score * inside).astype(np.float32), (0, 0), max(radius / 3, 0.1))
    )
    typical = max(float(np.percentile(smooth[inside], 95)), 1e-30)
    height = np.where(inside, smooth / typical * np.minimum(depth / radius, 1), 0).astype(np.float32)

    lowered = _rebuild(height - prominence, height)
    high = (lowered > _rebuild(lowered - 1e-4, lowered)) & inside
    tops = np.asarray(cv2.connectedComponents(high.astype(np.uint8), connectivity=8)[1])
    # Highest first; a component's own top comes before any other of the same height.
    candidates = np.concatenate([_highest(height, components), _highest(height, tops)])
    candidates = candidates[np.argsort(-height[candidates[:, 0], candidates[:, 1]], kind="stable")]
    owners = components[candidates[:, 0], candidates[:, 1]]
    kept: list[int] = []
    for index, (place, owner) in enumerate(zip(candidates, owners, strict=True)):
        rivals = [other for other in kept if owners[other] == owner]
        if not rivals or np.hypot(*(candidates[rivals] - place).T).min() >= radius:
            kept.append(index)
    return candidates[kept]


def split(components: Int[np.ndarray, "h w"], peaks_yx: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "h w"]:
    """Parts 1..n: every sample goes to the nearest peak of its own component."""
    parts = np.zeros(components.shape, np.int64)
    owners = components[peaks_yx[:, 0], peaks_yx[:, 1]]
    for owner in np.unique(owners):
        mine = np.flatnonzero(owners == owner)
        where = np.nonzero(components == owner)
        nearest = cKDTree(peaks_yx[mine]).query(np.stack(where, axis=1))[1]
        parts[where] = mine[nearest] + 1
    return parts


def _highest(height: Float[np.ndarray, "h w"], regions: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "n 2"]:
    """The place of the highest sample of each region above 0."""
    samples = np.flatnonzero(regions)
    order = samples[np.lexsort((-height.ravel()[samples], regions.ravel()[samples]))]
    first = np.unique(regions.ravel()[order], return_index=True)[1]
    return np.stack(np.unravel_index(order[first], regions.shape), axis=1)


def _rebuild(marker: Float[np.ndarray, "h w"], mask: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Morphological reconstruction by dilation: the marker, grown under the mask until nothing changes."""
    while True:
        grown = np.minimum(np.asarray(cv2.dilate(marker, _NEIGHBOURS)), mask)
        if np.array_equal(grown, marker):
            return grown
        marker = grown


def _gather(parts: Int[np.ndarray, "h w"], score: Float[np.ndarray, "h w"], components: int) -> Blobs:
    count = int(parts.max())
    flat = parts.ravel()
    weight = np.maximum(score.astype(np.float64).ravel(), 1e-12)
    mass = np.bincount(flat, weight, minlength=count + 1)
    ys, xs = (np.bincount(flat, weight * at.ravel(), minlength=count + 1) for at in np.indices(parts.shape))
    density = np.where(flat > 0, weight / mass[flat], 0).reshape(parts.shape)
    return Blobs(
        parts=parts.astype(np.int32),
        centres_yx=(np.stack([ys, xs], axis=1) / np.maximum(mass, 1e-300)[:, None])[1:],
        density=density.astype(np.float32),
        components=components,
        by_mass=float(mass[1:].sum() / np.median(mass[1:])) if count else 0.0,
    )
