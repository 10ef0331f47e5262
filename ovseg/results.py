"""What the heads answer, ready for numpy, files and pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer


@dataclass(frozen=True)
class Segmentation:
    """A class for every pixel of one image.

    Attributes:
        labels: `(H, W)` class indices; `void` where no class is likely enough.
        names: the K class names; `labels == i` is `names[i]`.
        confidence: `(H, W)` probability of the best class in [0, 1], float32 (also where `labels` is void).
        background: indices of background classes.
        colors: RGB 0-255 by class where the vocabulary says so, else None.
        void: the label of "none of these": 255 up to 255 classes, else 65535.
        scores: `(K, h, w)` class probabilities when they were asked for: the same picture, an eighth as wide.
    """

    labels: Integer[np.ndarray, "H W"]
    names: tuple[str, ...]
    confidence: Float[np.ndarray, "H W"]
    background: frozenset[int] = frozenset()
    colors: tuple[tuple[int, int, int] | None, ...] | None = None
    void: int = 255
    scores: Float[np.ndarray, "K h w"] | None = None

    @property
    def image_hw(self) -> tuple[int, int]:
        """Pixels `(H, W)`."""
        return self.labels.shape[0], self.labels.shape[1]

    def shares(self) -> dict[str, float]:
        """Share of the pixels by class found, largest first; void pixels count in the whole only."""
        counts = np.bincount(self.labels.ravel()[self.labels.ravel() != self.void], minlength=len(self.names))
        order = np.argsort(-counts, kind="stable")
        return {self.names[i]: float(counts[i] / self.labels.size) for i in order if counts[i]}

    def mask(self, name: str) -> np.ndarray:
        """`(H, W)` bool, where the class is. Raises KeyError with the valid names."""
        if name not in self.names:
            raise KeyError(f"no class '{name}' in this result; it has: {', '.join(self.names)}")
        return self.labels == self.names.index(name)


def void_label(num_classes: int) -> int:
    """The label that means "no class": 255 while class indices fit in 0..254, else 65535."""
    return 255 if num_classes <= 255 else 65535
