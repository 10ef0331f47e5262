"""What a scene will show: every random choice, drawn in one place and in one order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TypeVar

import numpy as np

from ovseg.errors import ConfigError
from ovseg.scenes import vocabulary as words
from ovseg.scenes.atlas import concept, mean_colour
from ovseg.scenes.textures import PALETTES

T = TypeVar("T")

# Backgrounds that are nothing without their colour: they give way less to an object's.
_COLOUR_BOUND = frozenset({"sky", "snow", "lava", "night sky", "water", "hay"})


@dataclass(frozen=True, kw_only=True)
class SceneSettings:
    """How scenes are drawn. The defaults are the segmentation benchmark's.

    Attributes:
        objects: fewest and most objects.
        size: smallest and largest object side, as a share of the image's shorter side.
        two_backgrounds: share of scenes with two backgrounds.
        shapes: share of objects that are coloured shapes, where the split has both.
        defects: share of objects that are damaged.
        camouflage: share of scenes whose background takes on an object's colour.
        overlap: how far objects may cover each other: 0 never, 1 freely.
        hardness: scales shading, colour casts, tints and noise; 0 is flat light.
        repeats: chance that an object has the kind of the one before it.
        one_kind: every scene shows one kind of object only (and its count), plus up to two others.
    """

    objects: tuple[int, int] = (2, 6)
    size: tuple[float, float] = (0.2, 0.48)
    two_backgrounds: float = 0.5
    shapes: float = 0.0
    defects: float = 0.0
    camouflage: float = 0.4
    overlap: float = 0.35
    hardness: float = 1.0
    repeats: float = 0.15
    one_kind: bool = False

    def __post_init__(self) -> None:
        low, high = self.objects
        if not 0 <= low <= high <= 64:
            raise ConfigError(f"objects is {self.objects}: give 0 <= fewest <= most <= 64")
        if not 0 < self.size[0] <= self.size[1] <= 2:
            raise ConfigError(f"size is {self.size}: give 0 < smallest <= largest <= 2")


# Settings of the splits that differ from the default.
SPLIT_SETTINGS = {
    "train": SceneSettings(shapes=0.2, defects=0.25),
    "anomaly": SceneSettings(objects=(1, 1), size=(0.5, 0.85), defects=0.5, two_backgrounds=0.0),
    "counting": SceneSettings(objects=(1, 20), size=(0.12, 0.24), overlap=0.2, one_kind=True),
}


class Draws:
    """Uniform numbers from one generator, fetched in blocks because single draws are slow."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._block: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        if not self._block:
            self._block = self._rng.random(128).tolist()
        return low + (high - low) * self._block.pop()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high], both included."""
        return low + min(high - low, int(self.uniform() * (high - low + 1)))

    def choice(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.integer(0, len(options) - 1)]


@dataclass(frozen=True, slots=True)
class BackgroundPlan:
    """One texture: its name, (3, 3) palette, offset, turn (of 1) and zoom."""

    name: str
    palette: np.ndarray
    u0: float
    v0: float
    turns: float
    zoom: float


@dataclass(frozen=True, slots=True)
class ObjectPlan:
    """One object: what it is, where, and how it looks.

    Attributes:
        name: class name.
        tile: place in the atlas, or -1 for a coloured shape.
        colour: of a shape, 0-255 with jitter; of a glyph, its mean.
        cx, cy, size: centre and side, px.
        turns: rotation (of 1).
        flip: mirrored.
        gains: colour gains.
        light_x, light_y: brightness change across it.
        stripe: depth of a shape's stripes.
        defect: place in vocabulary.DEFECTS, or -1.
        seeds: (32,) numbers for the defect's form.
    """

    name: str
    tile: int
    colour: tuple[float, float, float]
    cx: float
    cy: float
    size: float
    turns: float
    flip: bool
    gains: tuple[float, float, float]
    light_x: float
    light_y: float
    stripe: float
    defect: int
    seeds: np.ndarray


@dataclass(frozen=True, slots=True)
class ScenePlan:
    """Everything about a scene before pixels: backgrounds, objects back to front, light.

    `border` is normal x, normal y, offset px, wave px, noise start; `light` is x, y, cloud, noise start
    twice, three gains, contrast, noise; `shadow` is its offset as a share of the object and its strength.
    """

    backgrounds: tuple[BackgroundPlan, ...]
    objects: tuple[ObjectPlan, ...]
    border: tuple[float, ...]
    light: tuple[float, ...]
    shadow: tuple[float, float, float]
    phrase: int


def _kinds(draws: Draws, split: str, settings: SceneSettings, scenery: tuple[str, ...]) -> list[str]:
    """The names of a scene's objects."""
    shapes = words.vocabulary(split)[1]
    allowed = words.allowed_objects(split, scenery)
    number = draws.integer(*settings.objects)

    def one() -> str:
        if shapes and (not allowed or draws.chance(settings.shapes)):
            return draws.choice(shapes)
        return draws.choice(allowed)

    if settings.one_kind:
        kinds = [one()] * number
        return kinds + [name for name in (one(), one()) if draws.chance(0.35) and name != kinds[0]]
    kinds = []
    for _ in range(number):
        repeat = kinds and draws.chance(settings.repeats)
        kinds.append(kinds[-1] if repeat else one())
    return kinds


def _background(
    draws: Draws, name: str, toward: tuple[float, float, float] | None, zoom: float
) -> BackgroundPlan:
    """One texture with a jittered palette, pulled toward a colour when `toward` is given."""
    number = words.BACKGROUNDS.index(name)
    palette = np.array(draws.choice(PALETTES[number]), np.float64)
    if toward is not None:
        strength = draws.uniform(0.2, 0.35) if name in _COLOUR_BOUND else draws.uniform(0.4, 0.8)
        for c in range(3):
            middle = (palette[0, c] + palette[1, c]) / 2
            palette[:, c] += strength * (toward[c] - middle)
    for c in range(3):
        palette[:, c] += draws.uniform(-16.0, 16.0)
    palette = np.clip(palette * draws.uniform(0.85, 1.12), 0, 255)
    turns = draws.uniform(-0.04, 0.04)
    if draws.chance(0.3):
        turns = draws.uniform()
    shift_u, shift_v = draws.uniform(0.0, 4096.0), draws.uniform(0.0, 4096.0)
    return BackgroundPlan(name, palette, shift_u, shift_v, turns, zoom * draws.uniform(0.75, 1.3))


def _place(draws: Draws, settings: SceneSettings, kinds: list[str], size_hw: tuple[int, int]) -> list:
    """Centres and sizes (px) that overlap no more than asked, where eight tries find them."""
    height, width = size_hw
    short = min(height, width)
    low, high = settings.size
    crowd = min(1.0, 2.2 / sqrt(max(1, len(kinds)) / 2.0)) if not settings.one_kind else 1.0
    placed: list[tuple[float, float, float]] = []
    for _ in kinds:
        size = short * draws.uniform(low, max(low, high * crowd))
        apart = 1.0 - settings.overlap * draws.uniform()
        best, best_gap = (0.0, 0.0), -1e9
        for _ in range(8):
            margin = 0.36 * size
            x = draws.uniform(margin, max(margin, width - margin))
            y = draws.uniform(margin, max(margin, height - margin))
            gap = 1e9
            for ox, oy, other in placed:
                distance = sqrt((x - ox) * (x - ox) + (y - oy) * (y - oy))
                gap = min(gap, distance - apart * 0.46 * (size + other))
            if gap > best_gap:
                best, best_gap = (x, y), gap
            if gap > 0:
                break
        placed.append((best[0], best[1], size))
    return placed


def _object(draws: Draws, settings: SceneSettings, name: str, place: tuple, rng) -> ObjectPlan:
    """One object's looks."""
    hard = settings.hardness
    cx, cy, size = place
    seeds = np.zeros(32)
    defect = -1
    if draws.chance(settings.defects):
        defect = draws.integer(0, len(words.DEFECTS) - 1)
        seeds = rng.random(32)
    colour_word = name.split(" ")[0]
    stripe = 0.0
    if colour_word in words.COLOURS and name.split(" ")[-1] in words.SHAPES:
        tile = -1
        jitter = 26 * hard
        red, green, blue = (
            min(255.0, max(0.0, c + draws.uniform(-jitter, jitter))) for c in words.COLOURS[colour_word]
        )
        colour = (red, green, blue)
        stripe = draws.uniform(0.08, 0.25) if draws.chance(0.25 * hard) else 0.0
        gains = (1.0, 1.0, 1.0)
    else:
        tile = draws.choice(concept(name).tiles)
        colour = mean_colour(tile)
        tint = (0.28 if draws.chance(0.35) else 0.08) * hard
        gains = (
            1.0 + draws.uniform(-tint, tint),
            1.0 + draws.uniform(-tint, tint),
            1.0 + draws.uniform(-tint, tint),
        )
    turns = draws.uniform(-0.06, 0.06)
    if draws.chance(0.12 * hard):
        turns = draws.uniform(-0.2, 0.2)
    slope = 0.5 * hard
    light_x, light_y = draws.uniform(-slope, slope), draws.uniform(-slope, slope)
    return ObjectPlan(
        name, tile, colour, cx, cy, size, turns, draws.chance(0.5), gains, light_x, light_y,
        stripe, defect, seeds,
    )  # fmt: skip


def plan_scene(
    rng: np.random.Generator, split: str, settings: SceneSettings, size_hw: tuple[int, int]
) -> ScenePlan:
    """Draw one scene.

    Args:
        rng: the scene's own generator.
        split: whose words to use.
        settings: how to draw.
        size_hw: image size in px.
    """
    draws = Draws(rng)
    height, width = size_hw
    scenery_pool = words.vocabulary(split)[2]
    first = draws.choice(scenery_pool)
    scenery: tuple[str, ...] = (first,)
    if draws.chance(settings.two_backgrounds):
        second = draws.choice(scenery_pool)
        scenery = (first, second) if second != first else scenery
    kinds = _kinds(draws, split, settings, scenery)
    places = _place(draws, settings, kinds, size_hw)
    objects = tuple(
        _object(draws, settings, name, place, rng) for name, place in zip(kinds, places, strict=True)
    )
    # a scene 224 px high shows a texture at its own scale; others show as much of it
    zoom = 224.0 / min(height, width)
    zoom = zoom if zoom < 1.0 else sqrt(zoom)
    backgrounds = []
    for name in scenery:
        hide = objects and draws.chance(settings.camouflage)
        toward = draws.choice(objects).colour if hide else None
        backgrounds.append(_background(draws, name, toward, zoom))
    angle = draws.uniform()
    nx, ny = angle, 1.0 - angle
    norm = sqrt(nx * nx + ny * ny)
    nx, ny = nx / norm * (1 if draws.chance(0.5) else -1), ny / norm
    extent = abs(nx) * width + abs(ny) * height
    border = (nx, ny, draws.uniform(-0.2, 0.2) * extent, draws.uniform(0.05, 0.3) * extent,
              draws.uniform(0.0, 256.0))  # fmt: skip
    hard = settings.hardness
    cast = (0.16 if draws.chance(0.4) else 0.05) * hard
    light = (
        draws.uniform(-0.4, 0.4) * hard, draws.uniform(-0.4, 0.4) * hard, draws.uniform(0.0, 0.7) * hard,
        draws.uniform(0.0, 256.0), draws.uniform(0.0, 256.0),
        *(1.0 + draws.uniform(-cast, cast) for _ in range(3)),
        draws.uniform(-0.3, 0.3) * hard, draws.uniform(0.0, 26.0) * hard,
    )  # fmt: skip
    shadow = (draws.uniform(-0.1, 0.1), draws.uniform(0.0, 0.12), draws.uniform(0.1, 0.5))
    return ScenePlan(tuple(backgrounds), objects, border, light, shadow, draws.integer(0, 3))
