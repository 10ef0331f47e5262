"""The glyph atlas: pictures of named things as small RGBA tiles, with halved copies for small sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np
from PIL import Image

from ovseg.scenes.tiles import halve, pad

LEVELS = 4  # 96, 48, 24 and 12 px


@dataclass(frozen=True)
class Concept:
    """One named thing.

    Attributes:
        name: the word that a person would type.
        synonyms: other words for it.
        split: "train", or "unseen" for names that training never shows.
        tiles: its pictures, as places in the atlas.
    """

    name: str
    synonyms: tuple[str, ...]
    split: str
    tiles: tuple[int, ...]


@cache
def _table() -> dict:
    return json.loads((files("ovseg") / "bundled" / "glyphs.json").read_text(encoding="utf-8"))


@cache
def load_concepts() -> tuple[Concept, ...]:
    """Every concept of the atlas, in its order (the order numbers the classes: append only)."""
    return tuple(
        Concept(c["name"], tuple(c["synonyms"]), c["split"], tuple(c["tiles"])) for c in _table()["concepts"]
    )


@cache
def concept(name: str) -> Concept:
    """The concept of this name."""
    return next(c for c in load_concepts() if c.name == name)


def premultiply(rgba: np.ndarray) -> np.ndarray:
    """(..., 4) uint8 RGBA with colour scaled by opacity, in integer arithmetic."""
    wide = rgba.astype(np.uint16)
    wide[..., :3] = (wide[..., :3] * wide[..., 3:] + 127) // 255
    return wide.astype(np.uint8)


@cache
def load_tiles() -> tuple[np.ndarray, ...]:
    """All tiles, premultiplied, one array (N, side + 2, side + 2, 4) uint8 a level, largest first.

    Each has an empty border of 1 px.
    """
    table = _table()
    side, columns = table["tile_px"], table["columns"]
    with (files("ovseg") / "bundled" / "glyphs.webp").open("rb") as stream:
        atlas = np.asarray(Image.open(stream).convert("RGBA"))
    rows = atlas.shape[0] // side
    tiles = atlas.reshape(rows, side, columns, side, 4).swapaxes(1, 2).reshape(-1, side, side, 4)
    levels = [premultiply(tiles)]
    for _ in range(LEVELS - 1):
        levels.append(np.stack([halve(tile) for tile in levels[-1]]))
    return tuple(np.stack([pad(tile) for tile in level]) for level in levels)


@cache
def mean_colour(tile: int) -> tuple[float, float, float]:
    """Mean RGB of a tile's opaque part, 0-255."""
    sums = load_tiles()[0][tile].reshape(-1, 4).astype(np.int64).sum(0)
    return tuple(round(255.0 * int(s) / max(1, int(sums[3])), 3) for s in sums[:3])  # type: ignore[return-value]
