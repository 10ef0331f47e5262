"""`SceneSet`: deterministic random access to scenes, with their truth."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np

from ovseg.errors import ConfigError, unknown_name
from ovseg.scenes import compose
from ovseg.scenes import vocabulary as words
from ovseg.scenes.atlas import LEVELS, load_tiles
from ovseg.scenes.captions import write_caption
from ovseg.scenes.plan import SPLIT_SETTINGS, ObjectPlan, ScenePlan, SceneSettings, plan_scene
from ovseg.scenes.textures import noise_bank, paint_background
from ovseg.scenes.tiles import TILE_PX, colour_shape, draw_defect, halve, pad, shape_mask

SPLITS = tuple(words.SPLIT_CODES)

# An object that shows less than this is left out of the scene altogether.
MIN_VISIBLE_SHARE = 0.35
MIN_VISIBLE_PX = 30

_HOLE = tuple(words.DEFECTS).index("hole")


@dataclass(frozen=True)
class Scene:
    """One picture and everything true of it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8 (uint16 from 256 classes) index into the set's classes; every pixel has one.
        instances: (H, W) int32, 1..N for the objects and 0 for background.
        boxes_xyxy: (N, 4) float32 px, the extent of what is visible; the far edges are exclusive.
        names: the N objects' class names.
        instance_classes: (N,) int64 index into the set's classes.
        instance_defects: for each object "crack", "scratch", "hole", "stain" or None.
        defects: (H, W) bool, where an object is damaged (a hole shows what lies behind it).
        caption: one sentence that names everything visible.
        counts: class name -> number of objects.
        backgrounds: names of the backgrounds present.
    """

    image: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    boxes_xyxy: np.ndarray
    names: tuple[str, ...]
    instance_classes: np.ndarray
    instance_defects: tuple[str | None, ...]
    defects: np.ndarray
    caption: str
    counts: dict[str, int]
    backgrounds: tuple[str, ...]


@cache
def _no_damage(level: int) -> np.ndarray:
    return np.zeros((2 + (TILE_PX >> level), 2 + (TILE_PX >> level), 1), np.uint8)


def _object_levels(plan: ObjectPlan) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """An object's tile and its damage at every halving, each with an empty border of 1 px."""
    if plan.tile >= 0 and plan.defect < 0:
        return [level[plan.tile] for level in load_tiles()], [_no_damage(k) for k in range(LEVELS)]
    if plan.tile >= 0:
        tile = load_tiles()[0][plan.tile, 1:-1, 1:-1].copy()
    else:
        shape = words.SHAPES.index(plan.name.split(" ")[-1])
        tile = colour_shape(shape_mask(shape), *plan.colour, plan.stripe, plan.light_y)
    damage = np.zeros((TILE_PX, TILE_PX, 1), np.uint8)
    if plan.defect >= 0:
        draw_defect(tile, damage[..., 0], plan.defect, plan.seeds)
    tiles, damages = [tile], [damage]
    for _ in range(LEVELS - 1):
        tiles.append(halve(tiles[-1]))
        damages.append(halve(damages[-1]))
    return [pad(level) for level in tiles], [pad(level) for level in damages]


def _level(size: float) -> int:
    """The halving whose side is nearest above the drawn size."""
    level = 0
    while level < LEVELS - 1 and TILE_PX >> (level + 1) >= size:
        level += 1
    return level


class SceneSet:
    """A set of scenes by split and seed, drawn when asked for.

    Equal arguments give equal scenes on every machine; scenes of different splits never share a seed,
    and only "train" scenes may be trained on. "val" is for tuning, all others are for reporting.

    Args:
        split: one of `SPLITS`: "train", "val", "test"; "pairs" (test objects on backgrounds that training
            never pairs them with), "compositions" (colour and shape pairs that training never shows),
            "unseen" (names that training never shows), "anomaly" (one object, half of them damaged),
            "counting" (many of one kind), "demo".
        seed: which scenes.
        length: how many.
        size_hw: image size in px.
        settings: how they are drawn; None takes the split's own.

    Attributes:
        classes: the split's evaluation vocabulary, objects before backgrounds; index = label.
        background_classes: those that are backgrounds.
    """

    def __init__(
        self,
        split: str = "test",
        seed: int = 0,
        *,
        length: int = 64,
        size_hw: tuple[int, int] = (224, 288),
        settings: SceneSettings | None = None,
    ) -> None:
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        if seed < 0 or length < 0 or min(size_hw) < 16:
            raise ConfigError(
                f"seed {seed}, length {length}, size_hw {size_hw}: give a seed and length of 0 or more "
                "and sides of 16 px or more"
            )
        self.split, self.seed, self.length = split, seed, length
        self.size_hw = (size_hw[0], size_hw[1])
        self.settings = settings or SPLIT_SETTINGS.get(split, SceneSettings())
        objects, shapes, backgrounds = words.vocabulary(split)
        self.classes: tuple[str, ...] = objects + shapes + backgrounds
        self.background_classes: tuple[str, ...] = backgrounds
        self._index = {name: index for index, name in enumerate(self.classes)}
        self._dtype = np.uint8 if len(self.classes) < 256 else np.uint16

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Scene:
        if not -self.length <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        return self.render(index % self.length, self.size_hw)

    def render(self, index: int, size_hw: tuple[int, int]) -> Scene:
        """Scene number `index` (any, also beyond the length) at a size in px."""
        key = np.random.SeedSequence([words.SPLIT_CODES[self.split], self.seed, index])
        plan = plan_scene(np.random.Generator(np.random.PCG64(key)), self.split, self.settings, size_hw)
        return self._draw(plan, size_hw)

    def _draw(self, plan: ScenePlan, size_hw: tuple[int, int]) -> Scene:
        height, width = size_hw
        bank = noise_bank()
        region = np.zeros(size_hw, np.uint8)
        if len(plan.backgrounds) == 2:
            compose.split_region(region, *plan.border, bank)
        out = np.empty((height, width, 3), np.float32)
        for side, ground in enumerate(plan.backgrounds):
            cos, sin = compose.rotation(ground.turns % 1.0)
            number = words.BACKGROUNDS.index(ground.name)
            paint_background(
                out, region, side, number, ground.palette, ground.u0, ground.v0, cos, sin, ground.zoom, bank
            )  # fmt: skip

        levels = [_object_levels(thing) for thing in plan.objects]
        kept = self._visible(plan.objects, levels, size_hw)
        ids = np.zeros(size_hw, np.int32)
        defects = np.zeros(size_hw, np.bool_)
        shift_x, shift_y, strength = plan.shadow
        for number, place in enumerate(kept, 1):
            thing, (tiles, damages) = plan.objects[place], levels[place]
            cos, sin = compose.rotation(thing.turns % 1.0)
            level = _level(thing.size)
            hurt = 0 if thing.defect < 0 else 2 if thing.defect == _HOLE else 1
            compose.cast_shadow(
                out, tiles[min(LEVELS - 1, level + 2)], thing.cx + shift_x * thing.size,
                thing.cy + shift_y * thing.size, thing.size * 1.04, cos, sin, thing.flip, strength,
            )  # fmt: skip
            compose.paint_object(
                out, ids, defects, tiles[level], damages[level], hurt, thing.cx, thing.cy,
                thing.size, cos, sin, thing.flip, thing.light_x, thing.light_y, np.array(thing.gains), number,
            )  # fmt: skip
        light_x, light_y, cloud, u0, v0, red, green, blue, contrast, noise = plan.light
        image = compose.finish(
            out, light_x, light_y, cloud, u0, v0, np.array([red, green, blue]), contrast, noise, bank
        )
        return self._truth(plan, [plan.objects[k] for k in kept], image, region, ids, defects)

    @staticmethod
    def _visible(objects: tuple[ObjectPlan, ...], levels: list, size_hw: tuple[int, int]) -> list[int]:
        """Places of the objects that are visible enough once all are stamped, back to front."""
        ids = np.zeros(size_hw, np.int32)
        full = []
        for number, (thing, (tiles, _)) in enumerate(zip(objects, levels, strict=True), 1):
            cos, sin = compose.rotation(thing.turns % 1.0)
            tile = tiles[_level(thing.size)]
            full.append(
                compose.stamp(ids, tile, thing.cx, thing.cy, thing.size, cos, sin, thing.flip, number)
            )
        areas = compose.extents(ids, len(objects))[1]
        return [
            k
            for k in range(len(objects))
            if areas[k] >= MIN_VISIBLE_PX and areas[k] >= MIN_VISIBLE_SHARE * full[k]
        ]

    def _truth(
        self, plan: ScenePlan, things: list[ObjectPlan], image: np.ndarray, region: np.ndarray,
        ids: np.ndarray, defects: np.ndarray,
    ) -> Scene:  # fmt: skip
        names = tuple(thing.name for thing in things)
        classes = np.array([self._index[name] for name in names], np.int64)
        ground = np.array([self._index[b.name] for b in plan.backgrounds] * 2, np.int64)[:2]
        labels = np.empty(ids.shape, self._dtype)
        seen = compose.label(ids, region, np.append(-1, classes), ground, labels)
        kinds = tuple(words.DEFECTS)
        broken = tuple(kinds[thing.defect] if thing.defect >= 0 else None for thing in things)
        backgrounds = tuple(b.name for b, area in zip(plan.backgrounds, seen, strict=False) if area)
        return Scene(
            image=image,
            labels=labels,
            instances=ids,
            boxes_xyxy=compose.extents(ids, len(things))[0],
            names=names,
            instance_classes=classes,
            instance_defects=broken,
            defects=defects,
            caption=write_caption(names, broken, backgrounds, plan.phrase),
            counts=dict(Counter(names)),
            backgrounds=backgrounds,
        )
