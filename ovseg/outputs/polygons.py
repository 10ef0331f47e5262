"""Masks as polygons with holes, exactly: along the edges of pixels, as rectilinear rings.

Filling the rings gives the mask back, pixel by pixel. Pixels belong together by their sides (4-connected), so
every region has one exterior, and rings touch at most in points: valid polygons for every reader.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Real
from scipy import ndimage

Point = tuple[int, int]


@dataclass(frozen=True)
class Polygon:
    """A region of connected pixels.

    Attributes:
        exterior: `(n, 2)` corners as x, y; the pixel in the top left corner of an image spans (0, 0) to
            (1, 1). Not closed: the first corner is not repeated. Its signed area is positive.
        holes: rings likewise, whose signed area is negative.
    """

    exterior: Int[np.ndarray, "n 2"]
    holes: tuple[Int[np.ndarray, "_ 2"], ...] = ()

    @property
    def area(self) -> float:
        """Pixels."""
        return sum(map(signed_area, (self.exterior, *self.holes)))


def signed_area(ring: Real[np.ndarray, "n 2"]) -> float:
    """Of a ring of corners, by the shoelace formula: positive when x turns toward y."""
    x, y = (ring - ring[0]).astype(float).T  # near zero: map coordinates are large
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def outlines(mask: Bool[np.ndarray, "_ _"], offset_xy: Point = (0, 0)) -> list[Polygon]:
    """A polygon for each region of connected pixels, in the order of `scipy.ndimage.label`.

    Args:
        mask: of an image, or of a part of it.
        offset_xy: of that part, added to all corners.
    """
    regions, count = ndimage.label(np.pad(mask, 1))
    found = polygons(*corners(regions), offset_xy)
    return [found[each] for each in range(1, count + 1)]


def simple_outlines(mask: Bool[np.ndarray, "_ _"], offset_xy: Point = (0, 0)) -> list[np.ndarray]:
    """Rings without holes that cover the mask together: regions are cut through their holes.

    For formats whose polygons have no holes. Arguments as of `outlines`.
    """
    found, waiting = [], [(mask, offset_xy)]
    while waiting:
        piece, (left, top) = waiting.pop()
        regions, _ = ndimage.label(piece)
        for number, (polygon, place) in enumerate(
            zip(outlines(piece), ndimage.find_objects(regions), strict=True), start=1
        ):
            if not polygon.holes:
                found.append(polygon.exterior + np.array([left, top]))
                continue
            rows, columns = place
            middles = sorted(int(hole[:, 0].min() + hole[:, 0].max()) // 2 for hole in polygon.holes)
            cut = middles[len(middles) // 2] - columns.start
            alone = regions[place] == number
            corner = left + columns.start, top + rows.start
            waiting.append((alone[:, :cut], corner))
            waiting.append((alone[:, cut:], (corner[0] + cut, corner[1])))
    return found


def corners(regions: Int[np.ndarray, "_ _"]) -> tuple[Int[np.ndarray, "5 n"], Bool[np.ndarray, " n"]]:
    """Where outlines turn, at the points between pixels.

    Around each point where four pixels meet, a quadrant has a corner when its pixel is of another region than
    both its neighbours there (also where the opposite one is of its own), or when the three others are of one
    region and it is not. From the corner one arm goes up or down and one left or right, along the quadrant's
    sides.

    Args:
        regions: number of each pixel's region; 0 is none. Pixels that meet by their sides and are of the same
            kind have the same number. The points of the outermost pixels' far sides are not looked at.

    Returns:
        Columns of y, x, whether the arms go down, whether they go right, and the region; and whether the
        quadrant itself is inside.
    """
    found, inside = [], []
    for down in (0, 1):
        for right in (0, 1):
            own, beside, above, opposite = (
                regions[
                    tuple(
                        slice(part, regions.shape[axis] - 1 + part)
                        for axis, part in enumerate((down ^ flip_y, right ^ flip_x))
                    )
                ]
                for flip_y, flip_x in ((0, 0), (0, 1), (1, 0), (1, 1))
            )
            convex = (own != 0) & (beside != own) & (above != own)
            concave = (opposite != 0) & (own != opposite) & (beside == opposite) & (above == opposite)
            for where, quadrant in ((convex, own), (concave, opposite)):
                y, x = np.nonzero(where)
                flags = np.full_like(y, down), np.full_like(y, right)
                found.append(np.stack([y, x, *flags, quadrant[y, x]]))
                inside.append(np.full(len(y), where is convex))
    return np.concatenate(found, axis=1), np.concatenate(inside)


def polygons(
    found: Int[np.ndarray, "5 n"], inside: Bool[np.ndarray, " n"], offset_xy: Point = (0, 0)
) -> dict[int, Polygon]:
    """Regions by number, of all their `corners`."""
    exteriors: dict[int, np.ndarray] = {}
    holes: dict[int, list[np.ndarray]] = {}
    for region, loop in _loops(found, inside):
        for points in _without_touching(loop):
            ring = np.array(points) + offset_xy
            if signed_area(ring) > 0:
                exteriors[region] = ring
            else:
                holes.setdefault(region, []).append(ring)
    return {each: Polygon(ring, tuple(holes.get(each, ()))) for each, ring in exteriors.items()}


def _loops(
    found: Int[np.ndarray, "5 n"], inside: Bool[np.ndarray, " n"]
) -> Iterator[tuple[int, list[Point]]]:
    """Corners joined by their arms, with the region beside them, which lies to the right of the way.

    Along a row of points, the arm to the right of a region's corner meets the arm to the left of its next
    one; along a column likewise.
    """
    y, x, down, right, region = found
    by_row = np.lexsort((right, x, y, region))
    across, along = np.empty(len(y), int), np.empty(len(y), int)
    for partner, order in ((across, by_row), (along, np.lexsort((down, y, x, region)))):
        partner[order[0::2]], partner[order[1::2]] = order[1::2], order[0::2]
    step = along.tolist(), across.tolist()
    points = list(zip(x.tolist(), y.tolist(), strict=True))
    seen = [False] * len(points)
    for start in by_row.tolist():
        if seen[start]:
            continue
        # The first corner of a loop is its highest and there its leftmost: its arms go right and down.
        loop, at, turn = [], start, int(inside[start])
        while not seen[at]:
            seen[at] = True
            loop.append(points[at])
            at, turn = step[turn][at], 1 - turn
        yield int(region[start]), loop


def _without_touching(loop: list[Point]) -> Iterator[list[Point]]:
    """A loop that touches itself in points, cut there."""
    path: list[Point] = []
    place: dict[Point, int] = {}
    for point in loop:
        at = place.get(point)
        if at is None:
            place[point] = len(path)
            path.append(point)
            continue
        yield path[at:]
        for each in path[at + 1 :]:
            del place[each]
        del path[at + 1 :]
    yield path
