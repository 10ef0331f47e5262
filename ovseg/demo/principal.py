"""Patch features as colours: their three principal components, the same for every stage of a method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ovseg.errors import ShapeError
from ovseg.structures import DenseFeatures

#: The method that adds each network, and what it is called.
STAGES = (
    ("CLIP alone", "clip"),
    ("with DINO's affinity", "proxyclip"),
    ("with DINO and SAM", "trident"),
)


@torch.no_grad()
def principal_pictures(
    stages: Sequence[DenseFeatures], size_hw: tuple[int, int]
) -> list[UInt8[np.ndarray, "H W 3"]]:
    """A picture of each stage's features. Alike colours mean alike features, also between pictures.

    Every stage is centred by itself (CLIP's raw tokens share a large common part), then one basis is fitted
    to all of them together.

    Args:
        stages: features of one image, all in the same image-text space.
        size_hw: of the pictures.

    Raises:
        ShapeError: the stages are of different models.
    """
    if len({each.grid.shape[1] for each in stages}) != 1:
        raise ShapeError("features of different models share no colours: take stages of one encoder")
    centred = [_centred(each.grid[0].float()) for each in stages]
    # As many cells of each, so that no stage with a finer grid outvotes the others.
    fewest = min(each.flatten(1).shape[1] for each in centred)
    rows = [each.flatten(1)[:, _evenly(each.flatten(1).shape[1], fewest)] for each in centred]
    together = torch.cat(rows, dim=1)
    basis = torch.linalg.eigh(together @ together.T).eigenvectors[:, -3:].flip(1)
    basis = basis * basis.sum(dim=0).sign()  # an eigenvector's sign is arbitrary
    pictures = []
    for features, grid in zip(stages, centred, strict=True):
        parts = torch.einsum("dhw,dc->chw", grid, basis)
        pictures.append(_as_bytes(features.resampling.then(size_hw).apply(parts)))
    return pictures


def _centred(grid: Float[Tensor, "D h w"]) -> Float[Tensor, "D h w"]:
    return grid - grid.mean(dim=(1, 2), keepdim=True)


def _evenly(count: int, chosen: int) -> Tensor:
    return torch.linspace(0, count - 1, chosen).round().long()


def _as_bytes(parts: Float[Tensor, "3 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Each component from its 2nd to its 98th percentile."""
    values = parts.cpu().numpy()
    low, high = np.percentile(values, (2, 98), axis=(1, 2), keepdims=True)
    share = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    return (255 * share).round().astype(np.uint8).transpose(1, 2, 0)
