"""What a look at a data set's folder found."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SHOWN = 5


class Count(NamedTuple):
    """So many of something."""

    what: str
    found: int
    expected: int | None

    def __str__(self) -> str:
        of = "" if self.expected is None else f" of {self.expected:,}"
        return f"{self.found:,}{of} {self.what}"


@dataclass
class Report:
    """Of one split of a data set.

    Attributes:
        root: its folder.
        split: "train", "val" or "test".
        expected: images that the published split has; None is any number.
        subset: fewer than that are no problem.
        counts: what is there.
        problems: what is missing or wrong, a sentence each.
        notes: what is unusual, and may be meant so.
    """

    root: Path
    split: str
    expected: int | None = None
    subset: bool = False
    counts: list[Count] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def count(self, what: str, found: int, expected: int | None = None) -> None:
        """Notes a number; fewer than expected is a problem."""
        self.counts.append(Count(what, found, expected))
        if expected is None or found == expected:
            return
        if found < expected and not self.subset:
            self.problems.append(f"{expected - found:,} of {expected:,} {what} are missing")
        else:
            self.notes.append(f"the published split has {expected:,} {what}, here are {found:,}")

    def images(self, found: int) -> None:
        """Notes the number of images."""
        self.count("images", found, self.expected)

    def some(self, what: str, items: Collection[str]) -> None:
        """A problem of several files: how many, and the first of them."""
        if not items:
            return
        shown = sorted(items)[:SHOWN]
        more = f" and {len(items) - SHOWN:,} more" if len(items) > SHOWN else ""
        self.problems.append(f"{what} ({len(items):,}): {', '.join(shown)}{more}")

    def has(self, path: str, *, hint: str = "") -> bool:
        """Whether a file or folder below the root is there; its absence is a problem.

        Args:
            path: below the root; ends in a slash for a folder, which must not be empty.
            hint: how to come by it.
        """
        place = self.root / path
        if path.endswith("/"):
            if place.is_dir() and any(place.iterdir()):
                return True
            fault = "is empty" if place.is_dir() else "is no folder" if place.exists() else "is missing"
        else:
            if place.is_file():
                return True
            fault = "is no file" if place.exists() else "is missing"
        self.problems.append(f"{path} {fault}" + (f" ({hint})" if hint else ""))
        return False
