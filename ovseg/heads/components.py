"""Objects of a class in a mask: connected components, split by their peaks where objects touch."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy import ndimage

#: Components are split on a grid of at most so many cells a side.
SPLIT_CELLS = 128
#: Touching objects are convex, as nearly as this share of their convex hull; legs and wings are not.
CONVEXITY = 0.85


@dataclass(frozen=True)
class Component:
    """One object.

    Attributes:
        top, left: the upper left pixel of `mask` in the picture.
        mask: `(h, w)`, tight.
        score: mean probability over its surest pixels, in [0, 1].
        peak_xy: its surest pixel; of equals, the one farthest inside.
        piece: which connected component it is of, so that its neighbours there can be told.
    """

    top: int
    left: int
    mask: Bool[np.ndarray, "h w"]
    score: float
    peak_xy: tuple[int, int]
    piece: int = 0

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """Far edges exclusive."""
        return self.left, self.top, self.left + self.mask.shape[1], self.top + self.mask.shape[0]

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the mask in the picture."""
        left, top, right, bottom = self.box_xyxy
        return slice(top, bottom), slice(left, right)


def find_components(
    mask: Bool[np.ndarray, "H W"],
    probability: Float[np.ndarray, "H W"],
    *,
    min_area_px: int = 1,
    prominence: float = 1.0,
    convexity: float = CONVEXITY,
    top_share: float = 1.0,
    least_peak: float = 0.0,
    offset_xy: tuple[int, int] = (0, 0),
) -> list[Component]:
    """The 8-connected components of a mask, split where they have several peaks.

    Args:
        mask: where the class is.
        probability: of the class, in [0, 1].
        min_area_px: smaller ones are left out.
        prominence: see `split_touching`; 1 splits nothing.
        convexity: see `split_touching`.
        top_share: the score is the mean over this share of an object's pixels, the surest.
        least_peak: a connected component none of whose pixels is as sure is left out.
        offset_xy: place of the mask's upper left pixel in the picture, added to all coordinates.
    """
    count, ids, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    found = []
    for each in range(1, count):
        if stats[each, cv2.CC_STAT_AREA] < min_area_px:
            continue
        x, y, width, height = stats[each, : cv2.CC_STAT_AREA].tolist()
        crop = slice(y, y + height), slice(x, x + width)
        inside, values = ids[crop] == each, probability[crop]
        if least_peak > 0 and values.max(where=inside, initial=0.0) < least_peak:
            continue
        distance = _distance(inside)
        if prominence >= 1:
            parts = inside.astype(np.int32)
        else:
            parts = split_touching(inside, distance * values, prominence=prominence, convexity=convexity)
        for number, place in enumerate(ndimage.find_objects(parts), start=1):
            if place is None:
                continue
            part = parts[place] == number
            if part.sum() >= min_area_px:
                left, top = x + place[1].start + offset_xy[0], y + place[0].start + offset_xy[1]
                found.append(_describe(part, values[place], distance[place], left, top, top_share, each))
    return found


def split_touching(
    mask: Bool[np.ndarray, "h w"],
    relief: Float[np.ndarray, "h w"],
    *,
    prominence: float,
    convexity: float = 0.0,
) -> Integer[np.ndarray, "h w"]:
    """One component in parts `1..n`, 0 outside: a watershed that keeps only peaks of some prominence.

    A peak stays apart where the way to any higher one leads through a saddle at most `1 - prominence` times
    as high as itself; so it is a share of the object's size and needs no unit. With the distance to the
    border as relief, it asks for a neck.

    A giraffe has necks, too. So all stays one where the parts are not nearly convex: a row of things falls
    into convex parts, one branched thing does not.

    Args:
        mask: one component.
        relief: high in the middle of objects: the distance to the border, times the probability.
        prominence: in (0, 1]; the smaller, the more parts.
        convexity: least share of their convex hulls that the parts fill, all together; 0 asks nothing.
    """
    factor = -(-max(mask.shape) // SPLIT_CELLS)
    small_hw = -(-mask.shape[0] // factor), -(-mask.shape[1] // factor)
    small = cv2.resize(relief.astype(np.float32), small_hw[::-1], interpolation=cv2.INTER_AREA)
    small = np.pad(cv2.GaussianBlur(small, (0, 0), 1.0), 1)  # without the noise of single cells
    maxima = (small == ndimage.maximum_filter(small, size=3)) & (small > 0)
    markers, count = ndimage.label(maxima, np.ones((3, 3), int))
    if count < 2:
        return mask.astype(np.int32)
    basins = _climb(small, markers)
    heights = np.asarray(ndimage.maximum(small, markers, np.arange(1, count + 1)))
    part_of = _merge(heights, _saddles(basins, small, count), prominence)
    parts = part_of[np.maximum(basins[1:-1, 1:-1], 1) - 1] + 1
    rows, cols = (np.arange(side) // factor for side in mask.shape)
    split = np.where(mask, parts[rows[:, None], cols], 0).astype(np.int32)
    return split if convexity == 0 or filled_share(split) >= convexity else mask.astype(np.int32)


def filled_share(parts: Integer[np.ndarray, "h w"]) -> float:
    """Pixels of all parts, over those of their convex hulls; 1 where every part is convex."""
    hulls = 0
    for number, place in enumerate(ndimage.find_objects(parts), start=1):
        if place is not None:
            part = (parts[place] == number).view(np.uint8)
            rows = np.flatnonzero(part.any(axis=1))
            first, last = part[rows].argmax(axis=1), part.shape[1] - 1 - part[rows, ::-1].argmax(axis=1)
            ends = np.stack([np.append(first, last), np.append(rows, rows)], axis=1)  # of each row
            hull = cv2.convexHull(ends.astype(np.int32))
            hulls += cv2.countNonZero(cv2.fillConvexPoly(np.zeros_like(part), hull, 1))
    return np.count_nonzero(parts) / max(hulls, 1)


def _climb(relief: np.ndarray, markers: np.ndarray) -> Integer[np.ndarray, "h w"]:
    """The marker that each cell reaches by the steepest way up, 0 where it reaches none."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(relief, 1, constant_values=-1), (3, 3))
    step = around.reshape(*relief.shape, 9).argmax(axis=2)
    here = np.arange(relief.size).reshape(relief.shape)
    goal = here + (step // 3 - 1) * relief.shape[1] + step % 3 - 1
    goal = np.where(markers > 0, here, goal).ravel()
    while (goal[goal] != goal).any():  # doubles the length of the way
        goal = goal[goal]
    return markers.ravel()[goal].reshape(relief.shape)


def _saddles(basins: np.ndarray, relief: np.ndarray, count: int) -> Float[np.ndarray, "n n"]:
    """The highest pass between any two basins, 0 where they do not meet; in the upper triangle."""
    passes = np.zeros((count, count), relief.dtype)
    ahead, behind, whole = slice(1, None), slice(None, -1), slice(None)
    for one, other in (
        ((ahead, whole), (behind, whole)),
        ((whole, ahead), (whole, behind)),
        ((ahead, ahead), (behind, behind)),
        ((ahead, behind), (behind, ahead)),
    ):
        first, second = np.minimum(basins[one], basins[other]), np.maximum(basins[one], basins[other])
        meets = (first != second) & (first > 0)
        height = np.minimum(relief[one], relief[other])[meets]
        np.maximum.at(passes, (first[meets] - 1, second[meets] - 1), height)
    return passes


def _merge(heights: np.ndarray, passes: np.ndarray, prominence: float) -> Integer[np.ndarray, " n"]:
    """The part that each basin belongs to, counted from 0: the highest passes are walked first."""
    root = np.arange(len(heights))
    pairs = np.argwhere(passes > 0)
    for first, second in pairs[np.argsort(-passes[tuple(pairs.T)], kind="stable")]:
        high, low = root[first], root[second]
        if heights[low] > heights[high]:
            high, low = low, high
        if high != low and passes[first, second] > (1 - prominence) * heights[low]:
            root[root == low] = high
    return np.unique(root, return_inverse=True)[1]


def _distance(mask: np.ndarray) -> Float[np.ndarray, "h w"]:
    """Pixels to the border of the mask; the picture's border is one."""
    return cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]


def _describe(
    mask: np.ndarray,
    values: np.ndarray,
    distance: np.ndarray,
    left: int,
    top: int,
    top_share: float,
    piece: int,
) -> Component:
    inside = values[mask]
    few = max(round(top_share * inside.size), 1)
    surest = inside if few == inside.size else np.partition(inside, -few)[-few:]
    near = np.where(mask & (values >= inside.max() - 1e-6), distance, -1)
    y, x = np.unravel_index(near.argmax(), near.shape)
    peak_xy = left + int(x), top + int(y)
    return Component(top, left, mask, float(surest.mean(dtype=np.float64)), peak_xy, piece)
