"""Sentences about scenes, in plain English: articles, plurals, counts."""

from __future__ import annotations

from collections import Counter

from ovseg.scenes.vocabulary import DEFECTS

_NUMBERS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PLURALS = {
    "sheep": "sheep",
    "fish": "fish",
    "deer": "deer",
    "mouse": "mice",
    "knife": "knives",
    "wolf": "wolves",
    "maple leaf": "maple leaves",
    "tooth": "teeth",
    "snowman": "snowmen",
    "octopus": "octopuses",
    "cactus": "cacti",
    "broccoli": "broccoli",
    "popcorn": "popcorn",
    "dice": "dice",
}
# Names that are plural, or have no number, already: no article.
_BARE = frozenset(
    [
        "cherries",
        "grapes",
        "scissors",
        "headphones",
        "glasses",
        "sunglasses",
        "jeans",
        "socks",
        "dice",
        "broccoli",
        "popcorn",
        "corn",
        "sushi",
        "lightning",
        "fire",
        "bread",
        "cheese",
        "coffee",
        "chocolate",
        "candy",
        "beer",
    ]
) | {"french fries", "blueberries"}


def with_article(phrase: str) -> str:
    """An apple for "apple"; words without a singular stay bare."""
    if phrase in _BARE or phrase.split(" ")[-1] in _BARE:
        return phrase
    sound = phrase[0] in "aeio" or (phrase[0] == "u" and phrase[:2] not in ("un", "uf"))
    return f"{'an' if sound else 'a'} {phrase}"


def plural(name: str) -> str:
    """More than one: "buses" for "bus"."""
    if name in _PLURALS:
        return _PLURALS[name]
    if name in _BARE:
        return name
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def counted(name: str, defect: str | None, number: int) -> str:
    """So many of a thing, and what is wrong with them: "two cracked cups", "a cup with a hole"."""
    if number == 1:
        if defect == "hole":
            return DEFECTS[defect].format(with_article(name))
        return with_article(DEFECTS[defect].format(name) if defect else name)
    word = DEFECTS[defect].format(plural(name)) if defect else plural(name)
    return f"{_NUMBERS[number] if number < len(_NUMBERS) else number} {word}"


def write_caption(
    names: tuple[str, ...], defects: tuple[str | None, ...], backgrounds: tuple[str, ...], phrase: int
) -> str:
    """One sentence: the objects (damaged ones apart, equal ones counted), then the backgrounds.

    Args:
        names: the objects.
        defects: what is wrong with each (a key of vocabulary.DEFECTS), or None.
        backgrounds: one or two names.
        phrase: 0-3, which wording.
    """
    things = Counter(zip(names, defects, strict=True))
    parts = [counted(name, defect, number) for (name, defect), number in things.items()]
    ground = " and ".join(backgrounds)
    if not parts:
        return ground
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return (
        f"{listed} on {ground}",
        f"{ground} with {listed}",
        f"a photo of {listed} on {ground}",
        f"a scene of {ground} with {listed}",
    )[phrase]
