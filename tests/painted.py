"""Score maps with a known answer: discs and rectangles of classes, painted."""

from __future__ import annotations

import numpy as np
import torch

from ovseg.resampling import Resampling
from ovseg.score_map import ScoreMap
from ovseg.structures import TextBank


def disc(hw: tuple[int, int], middle_xy: tuple[float, float], radius: float) -> np.ndarray:
    ys, xs = np.mgrid[: hw[0], : hw[1]]
    return np.hypot(xs - middle_xy[0], ys - middle_xy[1]) <= radius


def plain_bank(count: int, **details) -> TextBank:
    """A query per class."""
    vectors = torch.nn.functional.normalize(torch.randn(count, 16), dim=1)
    return TextBank(vectors, torch.arange(count), tuple(f"class{k}" for k in range(count)), **details)


def painted(labels: np.ndarray, bank: TextBank, *, temperature: float = 4.0, noise: float = 0.0) -> ScoreMap:
    """One image whose pixels have cosine 1 with their class and 0 with the others; a cell is a pixel."""
    classes = torch.from_numpy(labels.astype(np.int64))
    cosine = torch.nn.functional.one_hot(classes, len(bank.names)).permute(2, 0, 1)[None].float()
    cosine = cosine + noise * torch.randn(cosine.shape)
    hw = (labels.shape[0], labels.shape[1])
    return ScoreMap(cosine, bank, temperature, Resampling.bilinear(hw, hw))
