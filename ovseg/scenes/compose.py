"""The pixel loops that put a scene together: regions, objects, light. The same bytes anywhere."""

from __future__ import annotations

from math import sqrt

import numpy as np

from ovseg.scenes.jit import kernel
from ovseg.scenes.textures import sample_noise


@kernel
def split_region(region, nx, ny, offset, wave_px, u0, bank):
    """Give the far side of a wavy line to background 1.

    Args:
        region: (H, W) uint8, changed.
        nx, ny: the line's unit normal.
        offset: its distance from the image centre in px.
        wave_px: how far the border wanders.
        u0: where in the noise it starts.
        bank: from `noise_bank`.
    """
    height, width = region.shape
    for y in range(height):
        for x in range(width):
            dx, dy = x - 0.5 * width, y - 0.5 * height
            along = dy * nx - dx * ny
            wave = wave_px * (sample_noise(bank, 0, along * 0.6 + u0, u0) - 0.5)
            region[y, x] = 1 if dx * nx + dy * ny + wave > offset else 0


@kernel
def _tile_position(x, y, cx, cy, scale, cos, sin, flip, side):
    """Image px -> tile px (continuous, pixel centres at whole numbers)."""
    dx, dy = x - cx, y - cy
    tx, ty = (dx * cos + dy * sin) * scale, (dy * cos - dx * sin) * scale
    return (-tx if flip else tx) + 0.5 * side - 0.5, ty + 0.5 * side - 0.5


@kernel
def _corner(t):
    """Whole part of a position above -1, and the fraction."""
    i = int(t + 1.0)
    return i, t + 1.0 - i


@kernel
def _bilinear(tile, tx, ty, channel):
    """Bilinear value of a tile's channel; (tx, ty) within a pixel of the tile, which has a 1 px border."""
    x, fx = _corner(tx)
    y, fy = _corner(ty)
    top = tile[y, x, channel] * (1.0 - fx) + tile[y, x + 1, channel] * fx
    low = tile[y + 1, x, channel] * (1.0 - fx) + tile[y + 1, x + 1, channel] * fx
    return top * (1.0 - fy) + low * fy


@kernel
def _off(tx, ty, side):
    return tx <= -1.0 or ty <= -1.0 or tx >= side or ty >= side


@kernel
def _bounds(cx, cy, reach, width, height):
    x0, x1 = max(0, int(cx - reach)), min(width, int(cx + reach) + 2)
    y0, y1 = max(0, int(cy - reach)), min(height, int(cy + reach) + 2)
    return x0, x1, y0, y1


@kernel
def stamp(ids, tile, cx, cy, size, cos, sin, flip, number):
    """Write `number` where an object covers more than half a pixel.

    Args:
        ids: (H, W) int32, changed.
        tile: (side + 2, side + 2, 4) uint8.
        cx, cy: centre in px.
        size: drawn side of the tile in px.
        cos, sin, flip: its pose.
        number: what to write.

    Returns:
        px covered inside the image.
    """
    height, width = ids.shape
    side = tile.shape[0] - 2
    scale = side / size
    x0, x1, y0, y1 = _bounds(cx, cy, 0.71 * size, width, height)
    covered = 0
    for y in range(y0, y1):
        for x in range(x0, x1):
            tx, ty = _tile_position(x, y, cx, cy, scale, cos, sin, flip, side)
            if not _off(tx, ty, side) and _bilinear(tile, tx, ty, 3) > 127.5:
                ids[y, x] = number
                covered += 1
    return covered


@kernel
def cast_shadow(out, tile, cx, cy, size, cos, sin, flip, strength):
    """Darken the image under an object's (already offset) outline.

    Args:
        out: (H, W, 3) float32, changed.
        tile: a coarse level of the tile, whose blur softens the shadow.
        cx, cy, size, cos, sin, flip: its pose.
        strength: 0-1.
    """
    height, width = out.shape[:2]
    side = tile.shape[0] - 2
    scale = side / size
    x0, x1, y0, y1 = _bounds(cx, cy, 0.78 * size, width, height)
    for y in range(y0, y1):
        for x in range(x0, x1):
            tx, ty = _tile_position(x, y, cx, cy, scale, cos, sin, flip, side)
            if _off(tx, ty, side):
                continue
            gain = 1.0 - strength * _bilinear(tile, tx, ty, 3) / 255.0
            for c in range(3):
                out[y, x, c] *= gain


@kernel
def paint_object(
    out, ids, defects, tile, damage, damaged, cx, cy, size, cos, sin, flip, light_x, light_y, gains, number
):
    """Blend an object into the image and write its number and damage.

    Args:
        out: (H, W, 3) float32 image, changed.
        ids: (H, W) int32, changed.
        defects: (H, W) bool, changed: set on this object's damage, cleared where it hides another's.
        tile: (side + 2, side + 2, 4) uint8 premultiplied.
        damage: (side + 2, side + 2, 1) uint8, 255 where the tile is damaged.
        damaged: 0 nowhere, 1 on the surface, 2 right through (a hole is damage, though the object is gone).
        cx, cy, size, cos, sin, flip: pose.
        light_x, light_y: brightness change across the object.
        gains: (3,) colour gains.
        number: instance number.
    """
    height, width = ids.shape
    side = tile.shape[0] - 2
    scale = side / size
    x0, x1, y0, y1 = _bounds(cx, cy, 0.71 * size, width, height)
    for y in range(y0, y1):
        for x in range(x0, x1):
            tx, ty = _tile_position(x, y, cx, cy, scale, cos, sin, flip, side)
            if _off(tx, ty, side):
                continue
            alpha = _bilinear(tile, tx, ty, 3)
            hurt = damaged > 0 and _bilinear(damage, tx, ty, 0) > 127.5
            if alpha > 0.0:
                gain = 1.0 + (light_x * (x - cx) + light_y * (y - cy)) / size
                keep = 1.0 - alpha / 255.0
                for c in range(3):
                    colour = _bilinear(tile, tx, ty, c) * gains[c] * gain
                    out[y, x, c] = out[y, x, c] * keep + colour
            if alpha > 127.5:
                ids[y, x] = number
                defects[y, x] = hurt
            elif hurt and damaged == 2:
                defects[y, x] = True


@kernel
def finish(out, light_x, light_y, cloud, u0, v0, gains, gamma_mix, noise, bank):
    """Scene light, colour cast and sensor noise, then bytes.

    Args:
        out: (H, W, 3) float32 image, 0-255.
        light_x, light_y: brightness change across the image.
        cloud: depth of slow brightness changes.
        u0, v0: where in the noise they start.
        gains: (3,) colour cast.
        gamma_mix: contrast curve, -0.5 to 0.5: mixes the image with its square.
        noise: noise amplitude in grey levels.
        bank: from `noise_bank`.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = out.shape[:2]
    image = np.empty((height, width, 3), np.uint8)
    stride = 90.0 / (height + width)
    # the slow part on a grid of 8 px, between which it is linear
    columns = width // 8 + 2
    grid = np.empty((height // 8 + 2, columns), np.float64)
    for gy in range(grid.shape[0]):
        for gx in range(columns):
            slow = sample_noise(bank, 0, u0 + 8 * gx * stride, v0 + 8 * gy * stride) - 0.5
            grid[gy, gx] = 1.0 + cloud * slow
    row_light = np.empty(columns, np.float64)
    for y in range(height):
        gy, fy = y >> 3, (y & 7) * 0.125
        for gx in range(columns):
            low = grid[gy, gx] * (1.0 - fy) + grid[gy + 1, gx] * fy
            row_light[gx] = low + light_x * (8.0 * gx / width - 0.5) + light_y * (y / height - 0.5)
        for x in range(width):
            gx, fx = x >> 3, (x & 7) * 0.125
            light = row_light[gx] * (1.0 - fx) + row_light[gx + 1] * fx
            for c in range(3):
                # three places far apart in the fine noise, one a channel
                speck = bank[2, (y + int(v0) + 83 * c) & 255, (x + int(u0) + 37 * c) & 255] - 0.5
                value = min(255.0, max(0.0, out[y, x, c] * light * gains[c]))
                value += gamma_mix * (value * value / 255.0 - value)
                image[y, x, c] = np.uint8(min(255.0, max(0.0, value + noise * speck + 0.5)))
    return image


@kernel
def extents(ids, count):
    """Boxes and areas of instances 1..count.

    Returns:
        (count, 4) float32 x0, y0, x1, y1 (the last two exclusive) and (count,) int64 px.
    """
    height, width = ids.shape
    boxes = np.empty((count, 4), np.float32)
    boxes[:, :2] = max(height, width)
    boxes[:, 2:] = 0
    areas = np.zeros(count, np.int64)
    for y in range(height):
        for x in range(width):
            k = ids[y, x] - 1
            if k >= 0:
                areas[k] += 1
                boxes[k, 0] = min(boxes[k, 0], x)
                boxes[k, 1] = min(boxes[k, 1], y)
                boxes[k, 2] = max(boxes[k, 2], x + 1)
                boxes[k, 3] = max(boxes[k, 3], y + 1)
    return boxes, areas


@kernel
def label(ids, region, of_instance, of_side, labels):
    """Class of every pixel: its instance's, else its background's.

    Args:
        ids: (H, W) int32.
        region: (H, W) uint8, 0 or 1.
        of_instance: (1 + N,) class of each instance number.
        of_side: (2,) class of each background.
        labels: (H, W), written.

    Returns:
        (2,) int64 visible px of each background.
    """
    seen = np.zeros(2, np.int64)
    for y in range(ids.shape[0]):
        for x in range(ids.shape[1]):
            if ids[y, x] > 0:
                labels[y, x] = of_instance[ids[y, x]]
            else:
                labels[y, x] = of_side[region[y, x]]
                seen[region[y, x]] += 1
    return seen


def rotation(turns: float) -> tuple[float, float]:
    """Cosine and sine of an angle in turns, by the half-angle tangent of a quarter (machine independent).

    The angle is not exactly uniform in `turns`; what matters is that every machine gets the same numbers.
    """
    quarter, rest = divmod(4.0 * turns, 1.0)
    t = rest * (0.7854 + 0.2146 * rest * rest)  # tan(pi/4 * rest) within 0.01, exact at 0 and 1
    norm = 1.0 + t * t
    cos, sin = (1.0 - t * t) / norm, 2.0 * t / norm
    for _ in range(int(quarter) % 4):
        cos, sin = -sin, cos
    length = sqrt(cos * cos + sin * sin)
    return cos / length, sin / length
