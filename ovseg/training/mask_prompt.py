"""Training of a mask-adapted CLIP: crops of regions against the nouns that name them.

Source: Liang et al., arXiv 2210.04150; `open_clip_training` of github.com/facebookresearch/ov-seg, 36f49d49.
There: 442,117 mask-noun pairs mined from COCO's captions; first the whole image tower (5 epochs, AdamW 5e-6,
512 crops a step for ViT-B), then the prompts alone (5 epochs, 0.05, no weight decay, 128 crops a step); 100
steps of warm-up, then a cosine to 0. The text tower never learns.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from ovseg.detection_results import Detections
from ovseg.rle import encode_mask


def pair_loss(
    regions: Float[Tensor, "B D"],
    texts: Float[Tensor, "B D"],
    scale: float,
    nouns: Int[Tensor, " B"] | None = None,
) -> Float[Tensor, ""]:
    """CLIP's loss: among a batch's texts a region finds its own, and among its regions a text.

    Args:
        regions, texts: pairs, of any length.
        scale: logits are `scale * cosine`.
        nouns: equal numbers say the same, and are right for each other. None as published: only one's own
            partner is right, though a batch may hold the same noun many times.
    """
    logits = scale * F.normalize(regions, dim=1) @ F.normalize(texts, dim=1).T
    own = torch.arange(len(logits), device=logits.device) if nouns is None else nouns
    right = (own[:, None] == own[None]).to(logits)
    right = right / right.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def split_regions(
    labels: Integer[np.ndarray, "H W"], instances: Integer[np.ndarray, "H W"], *, min_area_px: int = 30
) -> tuple[Detections, Int[np.ndarray, " N"]]:
    """An annotated picture as regions: each object, and each class of what is left.

    Args:
        labels: class of every pixel.
        instances: 1..N for objects, 0 elsewhere.
        min_area_px: smaller regions are left out.

    Returns:
        regions: masks, without classes.
        classes: of each region.
    """
    masks, classes = [], []
    for number in np.unique(instances):
        inside = instances == number
        for label in np.unique(labels[inside]) if number == 0 else labels[inside][:1]:
            mask = inside & (labels == label)
            if mask.sum() >= min_area_px:
                masks.append(mask)
                classes.append(int(label))
    boxes = [_extent(mask) for mask in masks]
    regions = Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.zeros(len(masks), np.int64),
        np.ones(len(masks), np.float32),
        ("region",),
        (labels.shape[0], labels.shape[1]),
        tuple(encode_mask(mask) for mask in masks),
    )
    return regions, np.array(classes, np.int64)


def _extent(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1]
