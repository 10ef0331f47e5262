"""Thing or stuff, for names of which a vocabulary does not say it."""

from __future__ import annotations

from functools import cache

from ovseg.text.vocabulary import Vocabulary, fold

#: Shipped lists that say it; the first that knows a name decides.
SOURCES = ("coco_stuff", "ade150")


@cache
def known_kinds() -> dict[str, bool]:
    """True for things, False for stuff, by name as COCO-Stuff and ADE20K have it."""
    found: dict[str, bool] = {}
    for source in SOURCES:
        for entry in Vocabulary.parse(source).classes:
            if entry.thing is not None:
                for name in (entry.name, *entry.prompts):
                    found.setdefault(fold(name), entry.thing)
    return found


def things_of(vocabulary: Vocabulary) -> tuple[bool | None, ...]:
    """For each class whether it is a thing (True) or stuff (False); None where nobody says."""
    known = known_kinds()
    return tuple(
        known.get(fold(entry.name)) if entry.thing is None else entry.thing for entry in vocabulary.classes
    )
