"""The words of the scenes: objects, coloured shapes, backgrounds, defects, and what each split may use."""

from __future__ import annotations

from functools import cache

from ovseg.errors import unknown_name
from ovseg.scenes.atlas import load_concepts

# Order matters: a background's place is its number in textures.paint_background.
BACKGROUNDS = (
    *("grass", "sky", "sand", "water", "brick", "wood", "checkerboard", "steel"),
    *("snow", "gravel", "carpet", "lava", "marble", "tiles", "hay", "night sky"),
    *("asphalt", "plaid", "leaves", "honeycomb"),  # seen in training, not in the evaluation vocabulary
)
EVAL_BACKGROUNDS = BACKGROUNDS[:16]

COLOURS = {
    "red": (214, 40, 40),
    "green": (48, 160, 64),
    "blue": (40, 90, 214),
    "yellow": (240, 208, 40),
    "purple": (130, 56, 170),
    "pink": (244, 140, 184),
    "black": (30, 30, 34),
    "white": (242, 242, 238),
}
# Order matters: a shape's place is its number in tiles.shape_mask.
SHAPES = (
    *("circle", "square", "triangle", "star", "cross"),
    *("heart", "diamond", "hexagon", "crescent", "ring"),
)
# Two shapes of every colour are never shown in training: the names' parts are known, the pair is new.
HELD_OUT_SHAPES = tuple(
    f"{colour} {SHAPES[place % 10]}"
    for number, colour in enumerate(COLOURS)
    for place in (3 * number, 3 * number + 5)
)
TRAIN_SHAPES = tuple(
    f"{colour} {shape}"
    for colour in COLOURS
    for shape in SHAPES
    if f"{colour} {shape}" not in HELD_OUT_SHAPES
)

# What is wrong with a defective object, and the phrase for it.
DEFECTS = {
    "crack": "cracked {}",
    "scratch": "scratched {}",
    "hole": "{} with a hole",
    "stain": "stained {}",
}

# The first 40, in alphabetical order, of the names that COCO's 80 classes share with the atlas.
EVAL_OBJECTS = (
    *("airplane", "apple", "backpack", "banana", "bear", "bed", "bicycle", "boat", "book", "bottle"),
    *("bowl", "broccoli", "bus", "cake", "car", "carrot", "cat", "cell phone", "chair", "clock"),
    *("couch", "cow", "dog", "donut", "elephant", "giraffe", "handbag", "horse", "hot dog"),
    *("keyboard", "kite", "knife", "laptop", "motorcycle", "orange", "pizza", "potted plant"),
    *("sandwich", "scissors", "sheep"),
)

SPLIT_CODES = {
    "train": 0,
    "val": 1,
    "test": 2,
    "pairs": 3,
    "compositions": 4,
    "unseen": 5,
    "anomaly": 6,
    "counting": 7,
    "demo": 8,
}


@cache
def train_objects() -> tuple[str, ...]:
    """Names of the glyphs that training may use."""
    return tuple(c.name for c in load_concepts() if c.split == "train")


@cache
def unseen_objects() -> tuple[str, ...]:
    """Names of the glyphs that no training scene shows."""
    return tuple(c.name for c in load_concepts() if c.split == "unseen")


def never_paired(name: str, background: str) -> bool:
    """True when training never shows this object in a scene with this background.

    About one pair in nine, spread evenly; those pairs make the split "pairs". Shapes and unseen objects
    have none.
    """
    objects = train_objects()
    if name not in objects:
        return False
    return (objects.index(name) * 7 + BACKGROUNDS.index(background) * 13) % 9 == 0


@cache
def vocabulary(split: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What a split draws from.

    Returns:
        objects, shapes, backgrounds: names; the split's classes are their concatenation.
    """
    if split not in SPLIT_CODES:
        raise unknown_name("split", split, SPLIT_CODES)
    if split == "train":
        return train_objects(), TRAIN_SHAPES, BACKGROUNDS
    if split == "unseen":
        return unseen_objects(), (), EVAL_BACKGROUNDS
    if split == "compositions":
        # every held-out pair, and 24 known ones to be confused with
        return (), HELD_OUT_SHAPES + TRAIN_SHAPES[::8] + TRAIN_SHAPES[3::4], EVAL_BACKGROUNDS
    return EVAL_OBJECTS, (), EVAL_BACKGROUNDS


@cache
def allowed_objects(split: str, scenery: tuple[str, ...]) -> tuple[str, ...]:
    """The split's objects that may stand before these backgrounds.

    In "pairs" those that training never shows with the first background, elsewhere those that training
    may show with all of them.
    """
    objects = vocabulary(split)[0]
    if split == "pairs":
        return tuple(name for name in objects if never_paired(name, scenery[0]))
    return tuple(name for name in objects if not any(never_paired(name, b) for b in scenery))
