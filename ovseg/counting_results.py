"""What counting answers: numbers, with where they come from and how sure they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ovseg.density import resize_density
from ovseg.errors import ShapeError


@dataclass(frozen=True)
class ClassCount:
    """How many of one class are in an image.

    Attributes:
        name: of the class.
        class_index: its label.
        number: how many; whole where objects were found one by one, else an expectation.
        density: objects per cell `(h, w)` of a grid over the whole image; sums to `number`.
        points_xy: `(n, 2)` in pixels, the image's top left corner being (0, 0); one for each object that was
            found, none where a head counts without finding.
        uncertainty: the number may be off by about so many objects.
    """

    name: str
    class_index: int
    number: float
    density: Float[np.ndarray, "h w"]
    points_xy: Float[np.ndarray, "n 2"]
    uncertainty: float = 0.0

    def __post_init__(self) -> None:
        total = float(self.density.sum(dtype=np.float64))
        if not np.isclose(total, self.number, rtol=1e-4, atol=1e-4):
            raise ShapeError(f"the density of '{self.name}' sums to {total:g}, its number is {self.number:g}")

    def picture(self, size_hw: tuple[int, int]) -> Float[np.ndarray, "H W"]:
        """The density with other cells, such as the image's pixels; the sum stays."""
        return resize_density(self.density, size_hw)

    def to_dict(self, *, density: bool = False) -> dict[str, object]:
        """JSON-ready.

        Args:
            density: with the map, a list of rows.
        """
        found: dict[str, object] = {
            "name": self.name,
            "class": self.class_index,
            "number": round(self.number, 4),
            "uncertainty": round(self.uncertainty, 4),
            "points_xy": self.points_xy.astype(float).round(2).tolist(),
        }
        if density:
            found["density"] = self.density.astype(float).round(6).tolist()
        return found


@dataclass(frozen=True)
class Counts:
    """How many of each class are in one image.

    Attributes:
        classes: those that were counted, in label order; also those with none.
        image_hw: pixels `(H, W)` that points refer to.
    """

    classes: tuple[ClassCount, ...]
    image_hw: tuple[int, int]

    def __getitem__(self, name: str) -> ClassCount:
        """The count of a class. Raises KeyError with the valid names."""
        for each in self.classes:
            if each.name == name:
                return each
        raise KeyError(f"'{name}' was not counted; counted: {', '.join(c.name for c in self.classes)}")

    @property
    def total(self) -> float:
        """All objects together."""
        return sum(each.number for each in self.classes)

    def numbers(self) -> dict[str, float]:
        """How many by class, most first; classes with none are left out."""
        found = sorted((each for each in self.classes if each.number > 0), key=lambda each: -each.number)
        return {each.name: each.number for each in found}

    def to_dict(self, *, density: bool = False) -> dict[str, object]:
        """JSON-ready.

        Args:
            density: with the density maps, lists of rows.
        """
        return {
            "image_hw": list(self.image_hw),
            "total": round(self.total, 4),
            "classes": [each.to_dict(density=density) for each in self.classes],
        }


def nothing_found(name: str, class_index: int, grid_hw: tuple[int, int]) -> ClassCount:
    """No object of a class; its density takes no memory."""
    empty = np.broadcast_to(np.float32(0), grid_hw)
    return ClassCount(name, class_index, 0.0, empty, np.zeros((0, 2), np.float32))
