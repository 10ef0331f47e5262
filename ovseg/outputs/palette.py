"""A colour for every class name: the same name has the same colour, in every picture and vocabulary.

Colours come from a fixed sequence in which each is as far as possible from all before it (greedy, in the
OKLab space, where distance is close to perceived difference). A name's hash chooses among the first
`SPREAD`; only where two names of one vocabulary meet does the later one move on, to the farthest free one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Float

Scheme = Literal["vivid", "colorblind"]
Color = tuple[int, int, int]

SPREAD = 24
BACKGROUND: Color = (128, 132, 140)
VOID: Color = (0, 0, 0)

# Linear sRGB -> cone responses -> OKLab: Ottosson 2020, https://bottosson.github.io/posts/oklab
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
# Linear sRGB as seen with full protanopia, deuteranopia, tritanopia: Machado et al. 2009, severity 1.
_DEFICIENCIES = np.array(
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)


def class_colors(
    names: Sequence[str],
    background: Collection[int] = (),
    given: Sequence[Color | None] | None = None,
    scheme: Scheme = "vivid",
) -> list[Color]:
    """RGB 0-255 for each class, all different but for background classes, which are grey.

    Args:
        names: the class names; capitals and surrounding spaces do not matter.
        background: indices of background classes.
        given: colours that the user chose, by class; they win.
        scheme: "vivid", or "colorblind" for colours that stay apart under red-green and blue-yellow
            colour blindness too (about a dozen do so well, by lightness; nothing can separate hundreds).
    """
    given = given or [None] * len(names)
    fixed = {color for color in given if color is not None}
    colors: list[Color | None] = [
        choice or (BACKGROUND if index in background else None) for index, choice in enumerate(given)
    ]
    waiting = [index for index, color in enumerate(colors) if color is None]
    sequence = distinct_colors(_sequence_length(len(waiting) + len(fixed)), scheme)
    spread = 12 if scheme == "colorblind" else SPREAD
    free = [color not in fixed for color in sequence]
    moved = []
    for index in waiting:
        slot = _hash(names[index]) % spread
        if free[slot]:
            colors[index], free[slot] = sequence[slot], False
        else:
            moved.append(index)
    lab = oklab(np.array(sequence[:spread], dtype=np.uint8))
    for index in moved:
        open_slots = np.array(free[:spread])
        if open_slots.any():
            gaps = ((lab[:, None] - lab[None, ~open_slots]) ** 2).sum(-1).min(1, initial=np.inf)
            slot = int(np.where(open_slots, gaps, -1.0).argmax())
        else:
            slot = free.index(True, spread)
        colors[index], free[slot] = sequence[slot], False
    return [color or BACKGROUND for color in colors]


def oklab(rgb: np.ndarray) -> Float[np.ndarray, "*lead 3"]:
    """OKLab coordinates of uint8 sRGB colours."""
    return _linear_to_oklab(_linear(rgb))


@cache
def distinct_colors(count: int, scheme: Scheme = "vivid") -> tuple[Color, ...]:
    """The first colours of the sequence, each as far as possible from all before it.

    Vivid ones are of middle lightness and clear chroma, so that they read on bright and on dark pictures.
    For "colorblind" the distance of two colours is the least over ordinary sight and the three kinds of
    colour blindness.
    """
    steps = np.linspace(0, 255, 18).astype(np.uint8)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = oklab(candidates)
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    if scheme == "vivid":
        keep = (lightness > 0.52) & (lightness < 0.88) & (chroma > 0.1) & (chroma < 0.23)
    else:
        keep = (lightness > 0.35) & (lightness < 0.93) & (chroma > 0.05) & (chroma < 0.23)
    candidates = candidates[keep]
    linear = _linear(candidates)
    sights = [_linear_to_oklab(linear)]
    if scheme == "colorblind":
        sights += [_linear_to_oklab((linear @ each.T).clip(0, 1)) for each in _DEFICIENCIES]
    start = int(np.argmin(np.abs(candidates.astype(int) - [225, 75, 60]).sum(1)))
    chosen = [start]
    nearest = np.full(len(candidates), np.inf)
    while len(chosen) < min(count, len(candidates)):
        last = np.min([((space - space[chosen[-1]]) ** 2).sum(-1) for space in sights], axis=0)
        nearest = np.minimum(nearest, last)
        chosen.append(int(nearest.argmax()))
    palette = [tuple(int(value) for value in candidates[index]) for index in chosen]
    while len(palette) < count:  # thousands of classes: colours repeat
        palette.append(palette[len(palette) - len(candidates)])
    return tuple(palette)  # type: ignore[arg-type]


def _sequence_length(count: int) -> int:
    """Rounded up, so that few sequences are computed; each is the beginning of the next."""
    return max(64, 1 << (count + SPREAD).bit_length())


def _hash(name: str) -> int:
    return int.from_bytes(
        hashlib.sha256(name.strip().casefold().encode("utf-8", "replace")).digest()[:8], "big"
    )


def _linear(rgb: np.ndarray) -> np.ndarray:
    value = np.asarray(rgb, dtype=np.float64) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _linear_to_oklab(linear: np.ndarray) -> np.ndarray:
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_LAB.T
