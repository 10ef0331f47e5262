"""Scenes of one kind of thing, good and damaged, as a camera above a production line sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from ovseg.errors import ConfigError, unknown_name
from ovseg.scenes import vocabulary as words
from ovseg.scenes.atlas import concept, mean_colour
from ovseg.scenes.dataset import Scene, SceneSet
from ovseg.scenes.plan import SceneSettings, plan_scene
from ovseg.scenes.textures import PALETTES

#: "good" scenes are to learn from, "test" scenes are half damaged, "val" ones likewise, to tune on.
Part = Literal["good", "test", "val"]

#: Kinds that the benchmark reports on, each its own category, as in MVTec AD.
KINDS = ("pizza", "clock", "donut", "apple", "cell phone", "bottle")

LOOKS = SceneSettings(
    objects=(1, 1), size=(0.6, 0.8), two_backgrounds=0.0, camouflage=0.0, hardness=0.5, defects=0.5
)


class InspectionSet(SceneSet):
    """One product on one ground; place, size, turn and light vary, and half of the test scenes are damaged.

    Args:
        kind: which product, a name of `ovseg.scenes.vocabulary.EVAL_OBJECTS`; all show the same picture.
        part: see `Part`. Scenes of different parts never share a seed.
        seed, length, size_hw: see `SceneSet`.

    Raises:
        ConfigError: unknown kind or part.
    """

    def __init__(
        self,
        kind: str = "pizza",
        part: Part = "test",
        seed: int = 0,
        *,
        length: int = 32,
        size_hw: tuple[int, int] = (224, 288),
    ) -> None:
        if kind not in words.EVAL_OBJECTS:
            raise unknown_name("kind of thing", kind, words.EVAL_OBJECTS)
        if part not in get_args(Part):
            raise ConfigError(f"part must be one of {', '.join(get_args(Part))}, got '{part}'")
        settings = replace(LOOKS, defects=0.0) if part == "good" else LOOKS
        super().__init__("anomaly", seed, length=length, size_hw=size_hw, settings=settings)
        self.kind = kind
        self.part: Part = part
        scenery = [name for name in words.EVAL_BACKGROUNDS if not words.never_paired(kind, name)]
        self.ground = scenery[words.EVAL_OBJECTS.index(kind) % len(scenery)]

    def render(self, index: int, size_hw: tuple[int, int]) -> Scene:
        """Scene number `index` (any, also beyond the length) at a size in px."""
        key = [
            words.SPLIT_CODES[self.split],
            self.seed,
            index,
            1 + get_args(Part).index(self.part),
            words.EVAL_OBJECTS.index(self.kind),
        ]
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        plan = plan_scene(rng, self.split, self.settings, size_hw)
        tile = concept(self.kind).tiles[0]
        palette = np.array(PALETTES[words.BACKGROUNDS.index(self.ground)][0], np.float64)
        (thing,), (ground,) = plan.objects, plan.backgrounds
        thing = replace(thing, name=self.kind, tile=tile, colour=mean_colour(tile), stripe=0.0, flip=False)
        ground = replace(ground, name=self.ground, palette=palette)
        return self._draw(replace(plan, objects=(thing,), backgrounds=(ground,)), size_hw)
