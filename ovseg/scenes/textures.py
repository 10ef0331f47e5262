"""Twenty named backgrounds, as formulas of position, noise and three colours.

A texture says how much of each colour a pixel gets, never which colours: palettes vary widely, so that
the pattern and not the hue makes the name. No transcendental functions: every machine draws the same bytes.
"""

from __future__ import annotations

from functools import cache
from math import floor, sqrt

import numpy as np

from ovseg.scenes.jit import kernel

NOISE_PX = 256  # side of the tileable noise fields; a power of two

# Palettes of (first, second, third) colour, one tuple of palettes a background, in vocabulary's order.
PALETTES: tuple[tuple[tuple[tuple[int, int, int], ...], ...], ...] = (
    # grass
    (((44, 110, 36), (120, 180, 60), (190, 200, 90)), ((90, 120, 40), (180, 180, 80), (220, 200, 120)),
     ((20, 80, 50), (80, 150, 90), (150, 190, 120))),
    # sky
    (((70, 140, 220), (235, 242, 250), (255, 255, 255)), ((230, 130, 90), (250, 210, 180), (255, 230, 200)),
     ((120, 130, 150), (215, 218, 224), (240, 240, 245))),
    # sand
    (((214, 184, 130), (240, 218, 170), (180, 150, 100)), ((190, 140, 100), (224, 180, 140), (150, 105, 75)),
     ((225, 220, 205), (245, 242, 230), (200, 190, 170))),
    # water
    (((20, 70, 150), (60, 140, 210), (190, 230, 250)), ((10, 100, 110), (50, 160, 160), (200, 245, 240)),
     ((30, 60, 60), (70, 110, 100), (170, 200, 190))),
    # brick
    (((160, 66, 50), (190, 90, 66), (205, 200, 190)), ((140, 140, 140), (175, 172, 168), (90, 90, 90)),
     ((200, 170, 110), (222, 196, 140), (120, 100, 80)), ((110, 60, 50), (140, 84, 70), (60, 50, 50))),
    # wood
    (((120, 76, 40), (176, 120, 70), (70, 40, 20)), ((196, 160, 110), (228, 196, 150), (140, 105, 70)),
     ((110, 104, 98), (156, 150, 142), (60, 56, 52)), ((110, 44, 26), (160, 74, 48), (60, 20, 12))),
    # checkerboard
    (((30, 30, 30), (235, 235, 235), (128, 128, 128)), ((170, 40, 40), (240, 230, 210), (120, 80, 70)),
     ((40, 90, 150), (220, 225, 160), (90, 120, 130)), ((60, 120, 70), (240, 200, 210), (110, 110, 90))),
    # steel
    (((120, 124, 130), (190, 194, 200), (235, 238, 242)), ((80, 90, 104), (140, 152, 168), (200, 212, 224)),
     ((150, 130, 90), (205, 186, 140), (240, 228, 190))),
    # snow
    (((206, 218, 236), (246, 249, 253), (255, 255, 255)), ((224, 212, 222), (250, 243, 246), (255, 255, 255)),
     ((188, 202, 216), (226, 234, 240), (250, 252, 255))),
    # gravel
    (((120, 116, 110), (176, 170, 160), (56, 52, 48)), ((150, 120, 96), (206, 180, 150), (80, 60, 46)),
     ((90, 100, 112), (150, 160, 172), (40, 44, 52))),
    # carpet
    (((140, 30, 40), (200, 160, 90), (40, 40, 80)), ((40, 60, 120), (200, 190, 160), (150, 60, 50)),
     ((60, 100, 70), (220, 200, 140), (130, 50, 60)), ((120, 80, 130), (210, 180, 200), (60, 50, 90))),
    # lava
    (((30, 20, 20), (190, 40, 10), (255, 210, 60)), ((50, 24, 16), (230, 90, 10), (255, 240, 130)),
     ((20, 16, 26), (160, 20, 30), (255, 140, 60))),
    # marble
    (((240, 238, 234), (205, 203, 200), (120, 118, 122)), ((40, 44, 46), (70, 76, 78), (210, 208, 200)),
     ((120, 160, 140), (160, 190, 170), (50, 90, 76)), ((230, 200, 190), (240, 218, 210), (160, 110, 110))),
    # tiles
    (((200, 214, 220), (225, 234, 238), (120, 128, 132)), ((60, 130, 150), (90, 160, 176), (225, 230, 230)),
     ((190, 120, 80), (210, 146, 104), (110, 90, 80)), ((230, 220, 190), (240, 232, 210), (150, 60, 50))),
    # hay
    (((150, 110, 40), (222, 186, 90), (250, 226, 150)), ((120, 96, 56), (190, 162, 100), (226, 206, 160)),
     ((160, 130, 30), (236, 206, 70), (255, 240, 160))),
    # night sky
    (((8, 10, 34), (40, 36, 90), (255, 255, 240)), ((6, 6, 14), (34, 20, 50), (220, 230, 255)),
     ((4, 24, 40), (20, 60, 86), (255, 240, 220))),
    # asphalt
    (((54, 54, 58), (90, 90, 94), (150, 150, 150)), ((70, 66, 62), (112, 106, 100), (40, 38, 36))),
    # plaid
    (((170, 30, 40), (30, 50, 40), (240, 230, 200)), ((40, 60, 140), (200, 200, 210), (230, 190, 60)),
     ((50, 110, 70), (20, 40, 60), (230, 60, 60)), ((210, 180, 140), (120, 80, 60), (250, 250, 250))),
    # leaves
    (((40, 100, 40), (110, 170, 60), (20, 56, 26)), ((190, 90, 30), (230, 160, 50), (110, 40, 20)),
     ((150, 50, 40), (210, 120, 60), (80, 30, 24))),
    # honeycomb
    (((240, 180, 40), (252, 214, 100), (150, 90, 20)), ((120, 160, 200), (170, 200, 226), (50, 70, 110)),
     ((200, 150, 190), (226, 190, 216), (100, 60, 110))),
)  # fmt: skip


@kernel
def _hash01(x, y, salt):
    """Integer lattice point -> uniform number in [0, 1)."""
    h = np.uint32(x * 374761393 + y * 668265263 + salt * 974634777)
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(1274126177))
    h = np.uint32(h ^ (h >> np.uint32(16)))
    return (h & np.uint32(0xFFFFFF)) / 16777216.0


@kernel
def _lattice_noise(side, cells, salt):
    """(side, side) float32 smooth noise in [0, 1] on a wrapping grid of cells x cells values."""
    out = np.empty((side, side), np.float32)
    for y in range(side):
        fy = y * cells / side
        iy = int(fy)
        ty = fy - iy
        ty = ty * ty * (3.0 - 2.0 * ty)
        for x in range(side):
            fx = x * cells / side
            ix = int(fx)
            tx = fx - ix
            tx = tx * tx * (3.0 - 2.0 * tx)
            jx, jy = (ix + 1) % cells, (iy + 1) % cells
            top = _hash01(ix, iy, salt) * (1.0 - tx) + _hash01(jx, iy, salt) * tx
            low = _hash01(ix, jy, salt) * (1.0 - tx) + _hash01(jx, jy, salt) * tx
            out[y, x] = top * (1.0 - ty) + low * ty
    return out


@cache
def noise_bank() -> np.ndarray:
    """(4, 256, 256) float32 tileable noise in [0, 1]: coarse, middle, fine, and all octaves together."""
    coarse, middle = _lattice_noise(NOISE_PX, 8, 1), _lattice_noise(NOISE_PX, 32, 2)
    fine = _lattice_noise(NOISE_PX, 128, 3)
    octaves = np.zeros_like(coarse)
    for power in range(3, 8):
        octaves += _lattice_noise(NOISE_PX, 2**power, 10 + power) * np.float32(0.5 ** (power - 2))
    bank = np.stack([coarse, middle, fine, octaves * np.float32(1.0 / 0.96875)])
    return np.ascontiguousarray(bank)


@kernel
def sample_noise(bank, field, x, y):
    """Bilinear value of a noise field at any position; it repeats every 256 px."""
    fx, fy = floor(x), floor(y)
    tx, ty = x - fx, y - fy
    x0, y0 = int(fx) & 255, int(fy) & 255
    x1, y1 = (x0 + 1) & 255, (y0 + 1) & 255
    top = bank[field, y0, x0] * (1.0 - tx) + bank[field, y0, x1] * tx
    low = bank[field, y1, x0] * (1.0 - tx) + bank[field, y1, x1] * tx
    return top * (1.0 - ty) + low * ty


@kernel
def _clip01(x):
    return min(1.0, max(0.0, x))


@kernel
def _triangle(x):
    """Triangle wave of period 1 in [0, 1]."""
    f = x - floor(x)
    return 2.0 * f if f < 0.5 else 2.0 - 2.0 * f


@kernel
def _cells(u, v):
    """Distances to the nearest and second nearest jittered lattice point, and the nearest one's number."""
    iu, iv = int(floor(u)), int(floor(v))
    best, second, tint = 9.0, 9.0, 0.0
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            x, y = iu + dx, iv + dy
            ex = x + 0.15 + 0.7 * _hash01(x, y, 21) - u
            ey = y + 0.15 + 0.7 * _hash01(x, y, 22) - v
            d = ex * ex + ey * ey
            if d < best:
                second = best
                best = d
                tint = _hash01(x, y, 23)
            elif d < second:
                second = d
    return sqrt(best), sqrt(second), tint


@kernel
def _texel(kind, u, v, bank):
    """How a pixel at (u, v), in px of a 224 px scene, mixes its palette.

    Returns:
        t, m, shade: mix of first and second colour, then of the third (all 0-1), then a brightness.
    """
    plain = kind == 1 or kind == 7 or kind == 10 or kind == 15 or kind == 17 or kind == 2 or kind == 13
    n = 0.5 if plain else sample_noise(bank, 3, u, v)
    if kind == 0:  # grass: upright blades
        blade = sample_noise(bank, 2, u * 1.7 + 9.0 * n, v * 0.22)
        return _clip01(1.6 * blade - 0.3), _clip01(3.0 * blade - 2.1), 0.7 + 0.5 * n
    if kind == 1:  # sky: soft clouds
        c = sample_noise(bank, 3, u * 0.35, v * 0.6)
        return _clip01(4.0 * c - 1.8), _clip01(5.0 * c - 3.0), 1.0
    if kind == 2:  # sand: ripples and grain
        ripple = _triangle(v * 0.055 + 0.9 * sample_noise(bank, 0, u * 0.6, v * 0.3))
        grain = sample_noise(bank, 2, u * 2.0, v * 2.0)
        return ripple, 0.35 * grain * (1.0 - ripple), 0.86 + 0.26 * grain
    if kind == 3:  # water: bright caustic lines
        warp = 30.0 * sample_noise(bank, 0, u, v)
        a = sample_noise(bank, 1, u * 0.7 + warp, v * 1.5)
        line = 1.0 - abs(2.0 * a - 1.0) * 2.4
        return _clip01(a * 1.3 - 0.1), _clip01(line * 1.8 - 1.0), 0.9 + 0.2 * n
    if kind == 4 or kind == 13:  # brick: staggered; tiles: square
        wide, tall = (30.0, 13.0) if kind == 4 else (24.0, 24.0)
        row = floor(v / tall)
        shift = 0.5 * (int(row) & 1) if kind == 4 else 0.0
        column = floor(u / wide + shift)
        fx, fy = (u / wide + shift - column) * wide, v - row * tall
        joint = 1.0 if (fx < 2.0 or fy < 2.0) else 0.0
        tint = _hash01(int(column), int(row), 31)
        rough = 0.8 + 0.4 * n if kind == 4 else 0.94 + 0.12 * (fx - fy) / 24.0
        return tint, joint, rough
    if kind == 5:  # wood: planks with grain along them
        plank = floor(v / 34.0)
        start = 91.0 * _hash01(int(plank), 0, 41)
        grain = sample_noise(bank, 1, u * 0.12 + start, v * 1.3 + 7.0 * n)
        ring = _triangle(grain * 5.0)
        seam = 1.0 if v - plank * 34.0 < 1.6 else 0.0
        return ring, max(seam, 0.4 * _clip01(3.0 * grain - 2.0)), 0.85 + 0.3 * _hash01(int(plank), 1, 42)
    if kind == 6:  # checkerboard
        return float((int(floor(u / 17.0)) + int(floor(v / 17.0))) & 1), 0.0, 0.93 + 0.14 * n
    if kind == 7:  # steel: brushed streaks and a sheen
        streak = sample_noise(bank, 2, u * 0.06, v * 2.2)
        sheen = _triangle(u * 0.006 + 0.3 * sample_noise(bank, 0, u * 0.2, v * 0.2))
        return 0.6 * sheen + 0.4 * streak, _clip01(2.0 * sheen - 1.4), 0.9 + 0.2 * streak
    if kind == 8:  # snow: soft drifts, a few sparkles
        drift = sample_noise(bank, 0, u * 0.7, v * 1.3)
        spark = 1.0 if _hash01(int(floor(u / 2.0)), int(floor(v / 2.0)), 51) > 0.992 else 0.0
        return _clip01(0.2 + 1.1 * drift), spark, 0.97 + 0.06 * n
    if kind == 9:  # gravel: stones with dark gaps
        near, far, tint = _cells(u / 13.0, v / 13.0)
        gap = _clip01(1.0 - (far - near) * 5.0)
        return tint, gap, 1.12 - 0.45 * near + 0.15 * (n - 0.5)
    if kind == 10:  # carpet: woven pile with diamond motifs
        a = _triangle(u / 44.0) + _triangle(v / 44.0)
        motif = 1.0 if abs(a - 1.0) < 0.16 else 0.0
        core = 1.0 if a > 1.62 or a < 0.34 else 0.0
        pile = sample_noise(bank, 2, u * 2.4, v * 2.4)
        return motif, core, 0.72 + 0.5 * pile
    if kind == 11:  # lava: glowing cracks in a dark crust
        near, far, tint = _cells(u / 36.0 + 0.8 * n, v / 36.0 + 0.5 * n)
        glow = _clip01(1.0 - (far - near) * 3.2)
        return glow, _clip01(2.6 * glow - 1.5), 0.75 + 0.5 * n
    if kind == 12:  # marble: thin veins on a cloudy ground
        w = 60.0 * sample_noise(bank, 3, u * 0.8, v * 0.8)
        a = sample_noise(bank, 0, (u + w) * 0.8, (v + 0.6 * w) * 0.8)
        vein = 1.0 - abs(2.0 * a - 1.0) * 9.0
        return _clip01(1.4 * n - 0.2), 0.9 * _clip01(vein), 1.0
    if kind == 14:  # hay: straws in two directions
        a = sample_noise(bank, 2, (u + v) * 0.12, (u - v) * 1.3)
        b = sample_noise(bank, 2, (u - 0.4 * v) * 0.14 + 50.0, (0.4 * u + v) * 1.4)
        s = max(a, b)
        return _clip01(2.2 * s - 0.8), _clip01(4.0 * s - 2.9), 0.72 + 0.4 * min(a, b)
    if kind == 15:  # night sky: stars over faint clouds
        cell_x, cell_y = int(floor(u / 9.0)), int(floor(v / 9.0))
        star = 0.0
        if _hash01(cell_x, cell_y, 61) > 0.55:
            ex = u - 9.0 * cell_x - 2.0 - 5.0 * _hash01(cell_x, cell_y, 62)
            ey = v - 9.0 * cell_y - 2.0 - 5.0 * _hash01(cell_x, cell_y, 63)
            size = 0.5 + 1.1 * _hash01(cell_x, cell_y, 64)
            star = _clip01(size + 0.5 - sqrt(ex * ex + ey * ey))
        return _clip01(2.2 * sample_noise(bank, 3, u * 0.5, v * 0.5) - 0.7), star, 1.0
    if kind == 16:  # asphalt: fine speckle
        speck = sample_noise(bank, 2, u * 2.0, v * 2.0)
        return speck, _clip01(6.0 * speck - 4.8), 0.86 + 0.28 * n
    if kind == 17:  # plaid: crossing bands and thin lines
        a, b = _triangle(u / 46.0), _triangle(v / 46.0)
        band = (0.5 if a > 0.55 else 0.0) + (0.5 if b > 0.55 else 0.0)
        line = 1.0 if abs(a - 0.28) < 0.04 or abs(b - 0.28) < 0.04 else 0.0
        twill = 1.04 if (int(floor(u)) + int(floor(v))) & 3 == 0 else 0.94
        return band, 0.75 * line, twill
    if kind == 18:  # leaves: overlapping cells, each with a midrib
        near, far, tint = _cells(u / 19.0 + 0.3 * n, v / 15.0)
        rib = abs((u / 19.0 - v / 15.0) * 4.0 - floor((u / 19.0 - v / 15.0) * 4.0) - 0.5)
        return tint, _clip01(1.0 - (far - near) * 4.0), 0.8 + 0.35 * rib + 0.25 * (0.6 - near)
    # honeycomb: hexagons as the nearest of two interleaved lattices
    x, y = u / 22.0, v / 38.105
    ax, ay = (x - floor(x) - 0.5) * 22.0, (y - floor(y) - 0.5) * 38.105
    bx, by = (x + 0.5 - floor(x + 0.5) - 0.5) * 22.0, (y + 0.5 - floor(y + 0.5) - 0.5) * 38.105
    da, db = ax * ax + ay * ay, bx * bx + by * by
    px, py = (ax, ay) if da < db else (bx, by)
    edge = max(abs(px), 0.5 * abs(px) + 0.8660254 * abs(py))
    return _clip01(min(da, db) / 120.0), 1.0 if edge > 9.6 else 0.0, 0.92 + 0.16 * n


@kernel
def paint_background(out, region, side, kind, palette, u0, v0, cos, sin, zoom, bank):
    """Paint one texture where `region == side`.

    Args:
        out: (H, W, 3) float32 image, 0-255, changed.
        region: (H, W) uint8, which background owns a pixel.
        side: the number to paint.
        kind: texture, numbered as vocabulary.BACKGROUNDS.
        palette: (3, 3) float64 colours.
        u0, v0: offset in texture px.
        cos, sin: rotation.
        zoom: texture px for one image px.
        bank: from `noise_bank`.
    """
    height, width = region.shape
    for y in range(height):
        for x in range(width):
            if region[y, x] != side:
                continue
            u = (x * cos - y * sin) * zoom + u0
            v = (x * sin + y * cos) * zoom + v0
            t, m, shade = _texel(kind, u, v, bank)
            for c in range(3):
                value = palette[0, c] * (1.0 - t) + palette[1, c] * t
                out[y, x, c] = (value * (1.0 - m) + palette[2, c] * m) * shade
