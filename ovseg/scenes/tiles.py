"""Object tiles, before they are placed: halving, coloured shapes, and defects drawn into a tile.

A tile is (side, side, 4) uint8, premultiplied RGBA; a defect mask is (side, side) uint8, 0 or 255. Only
+ - * / and square roots are used (and no fused or reordered arithmetic), so that every machine draws the
same bytes.
"""

from __future__ import annotations

from functools import cache
from math import sqrt

import numpy as np

from ovseg.scenes.jit import kernel

TILE_PX = 96


@kernel
def halve(tile):
    """Average of 2 x 2 pixels, rounded."""
    side = tile.shape[0] // 2
    out = np.empty((side, side, tile.shape[2]), np.uint8)
    for y in range(side):
        for x in range(side):
            for c in range(tile.shape[2]):
                total = (
                    np.int32(tile[2 * y, 2 * x, c])
                    + np.int32(tile[2 * y, 2 * x + 1, c])
                    + np.int32(tile[2 * y + 1, 2 * x, c])
                    + np.int32(tile[2 * y + 1, 2 * x + 1, c])
                )
                out[y, x, c] = (total + 2) // 4
    return out


@kernel
def pad(tile):
    """A border of one empty pixel, so that sampling needs no bounds checks."""
    side = tile.shape[0]
    out = np.zeros((side + 2, side + 2, tile.shape[2]), np.uint8)
    out[1:-1, 1:-1] = tile
    return out


@kernel
def _inside(shape, x, y):
    """True when (x, y), in [-1, 1] with y down, lies in the shape (numbered as vocabulary.SHAPES)."""
    r2 = x * x + y * y
    ax, ay = abs(x), abs(y)
    if shape == 0:  # circle
        return r2 < 0.92
    if shape == 1:  # square
        return max(ax, ay) < 0.82
    if shape == 2:  # triangle
        return y < 0.8 and y > -0.9 + 1.8 * ax
    if shape == 3:  # five-pointed star: under two of five half-planes at most
        outside = 0
        for k in range(5):
            # unit normals at 90 + 72 k degrees, as constants: cosines differ between machines
            if k == 0:
                nx, ny = 0.0, 1.0
            elif k == 1:
                nx, ny = -0.9510565, 0.3090170
            elif k == 2:
                nx, ny = -0.5877853, -0.8090170
            elif k == 3:
                nx, ny = 0.5877853, -0.8090170
            else:
                nx, ny = 0.9510565, 0.3090170
            if nx * x + ny * y > 0.36:
                outside += 1
        return outside <= 1 and r2 < 1.4
    if shape == 4:  # cross
        return (ax < 0.28 and ay < 0.9) or (ay < 0.28 and ax < 0.9)
    if shape == 5:  # heart: two discs over a triangle
        left = (ax - 0.43) * (ax - 0.43) + (y + 0.35) * (y + 0.35) < 0.235
        return left or (y > -0.35 and y < 0.92 - 1.08 * ax and ax < 0.88)
    if shape == 6:  # diamond
        return ax / 0.66 + ay / 0.95 < 1.0
    if shape == 7:  # hexagon
        return ay < 0.8 and ax * 0.866 + ay * 0.5 < 0.8
    if shape == 8:  # crescent
        return r2 < 0.88 and (x - 0.42) * (x - 0.42) + y * y > 0.56
    return r2 < 0.92 and r2 > 0.36  # ring


@kernel
def _draw_shape(shape, side):
    mask = np.zeros((side, side), np.uint8)
    for py in range(side):
        for px in range(side):
            hits = 0
            for k in range(16):
                x = (px + (k % 4 + 0.5) / 4) * 2 / side - 1
                y = (py + (k // 4 + 0.5) / 4) * 2 / side - 1
                hits += _inside(shape, x, y)
            mask[py, px] = hits * 255 // 16
    return mask


@cache
def shape_mask(shape: int) -> np.ndarray:
    """(side, side) uint8 opacity of a shape, numbered as vocabulary.SHAPES."""
    return _draw_shape(shape, TILE_PX)


@kernel
def colour_shape(mask, red, green, blue, stripe, gradient):
    """A shape's tile: its colour with a gradient, and soft stripes when `stripe` > 0.

    Args:
        mask: (side, side) uint8 opacity.
        red, green, blue: 0-255.
        stripe: depth of the stripes, 0-1.
        gradient: brightness change from top to bottom, signed.
    """
    side = mask.shape[0]
    tile = np.empty((side, side, 4), np.uint8)
    for y in range(side):
        for x in range(side):
            gain = 1.0 + gradient * (y / side - 0.5)
            if (x + y) // 8 % 2 == 0:
                gain *= 1.0 - stripe
            a = np.int32(mask[y, x])
            for c in range(3):
                value = (red, green, blue)[c] * gain
                tile[y, x, c] = np.int32(min(255.0, value)) * a // 255
            tile[y, x, 3] = a
    return tile


@kernel
def _stroke(tile, mask, x0, y0, x1, y1, width, level, strength):
    """Blend a line of grey `level` into the opaque part of a tile, and mark it."""
    side = tile.shape[0]
    dx, dy = x1 - x0, y1 - y0
    length2 = dx * dx + dy * dy + 1e-6
    low_y, high_y = int(min(y0, y1) - width - 1), int(max(y0, y1) + width + 2)
    low_x, high_x = int(min(x0, x1) - width - 1), int(max(x0, x1) + width + 2)
    for y in range(max(0, low_y), min(side, high_y)):
        for x in range(max(0, low_x), min(side, high_x)):
            t = min(1.0, max(0.0, ((x - x0) * dx + (y - y0) * dy) / length2))
            ex, ey = x - x0 - t * dx, y - y0 - t * dy
            distance = sqrt(ex * ex + ey * ey)
            cover = min(1.0, max(0.0, width - distance + 0.5)) * strength
            if cover <= 0.0 or tile[y, x, 3] == 0:
                continue
            for c in range(3):
                target = level * tile[y, x, 3] / 255.0
                tile[y, x, c] = np.uint8(tile[y, x, c] * (1.0 - cover) + target * cover)
            if cover > 0.3 and tile[y, x, 3] > 127:
                mask[y, x] = 255


@kernel
def draw_defect(tile, mask, kind, draws):
    """Damage a tile in place.

    Args:
        tile: (side, side, 4) uint8, changed.
        mask: (side, side) uint8, set to 255 where the object is damaged.
        kind: 0 crack, 1 scratch, 2 hole, 3 stain.
        draws: (32,) float64 uniform numbers in [0, 1).
    """
    side = tile.shape[0]
    # start on the object: the first of eight points that is opaque
    cx = cy = side / 2.0
    for k in range(8):
        x, y = side * (0.25 + 0.5 * draws[2 * k]), side * (0.25 + 0.5 * draws[2 * k + 1])
        if tile[int(y), int(x), 3] > 127:
            cx, cy = x, y
            break
    ux, uy = draws[16] - 0.5, draws[17] - 0.5
    norm = sqrt(ux * ux + uy * uy) + 1e-6
    ux, uy = ux / norm, uy / norm
    if kind == 0:  # crack: a dark zigzag through the point, both ways
        width = side * (0.018 + 0.02 * draws[18])
        for way in range(2):
            sign = 1.0 if way == 0 else -1.0
            px, py = cx, cy
            for k in range(6):
                step = side * (0.08 + 0.06 * draws[19 + k])
                bend = (draws[25 + k] - 0.5) * 1.8 * sign
                nx = px + sign * step * (ux - bend * uy)
                ny = py + sign * step * (uy + bend * ux)
                _stroke(tile, mask, px, py, nx, ny, width * (1.0 - 0.1 * k), 12.0, 0.95)
                px, py = nx, ny
    elif kind == 1:  # scratch: parallel thin pale lines
        for k in range(3 + int(draws[18] * 4)):
            shift = (k - 2.5) * side * (0.04 + 0.03 * draws[19])
            half = side * (0.2 + 0.16 * draws[20 + k])
            mx, my = cx - uy * shift, cy + ux * shift
            _stroke(
                tile, mask, mx - ux * half, my - uy * half, mx + ux * half, my + uy * half,
                side * 0.013, 245.0, 0.85,
            )  # fmt: skip
    else:  # hole or stain: an uneven blob
        radius = side * (0.11 + 0.09 * draws[18])
        shade = 60.0 * draws[19]
        for y in range(side):
            for x in range(side):
                ex, ey = x - cx, y - cy
                d = sqrt(ex * ex + ey * ey) + 1e-6
                lobe = (ex * ux + ey * uy) / d
                edge = radius * (1.0 + 0.3 * lobe * lobe + 0.35 * (lobe * (ey * ux - ex * uy) / d))
                cover = min(1.0, max(0.0, edge - d + 0.5))
                if cover <= 0.0 or tile[y, x, 3] == 0:
                    continue
                if tile[y, x, 3] > 127 and cover > 0.5:
                    mask[y, x] = 255
                if kind == 2:
                    for c in range(4):
                        tile[y, x, c] = np.uint8(tile[y, x, c] * (1.0 - cover))
                else:
                    alpha = tile[y, x, 3] / 255.0
                    for c in range(3):
                        target = (shade + 40.0, shade + 26.0, shade)[c] * alpha
                        value = tile[y, x, c]
                        tile[y, x, c] = np.uint8(value * (1.0 - 0.75 * cover) + target * 0.75 * cover)
