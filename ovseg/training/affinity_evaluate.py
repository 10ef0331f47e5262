"""How well a guide's features tell one thing from another, on validation scenes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.scenes import SceneSet
from ovseg.training.clip_batches import patch_shares, scene_regions

#: ProxyCLIP's reading of a guide (arXiv 2408.04883, section 3.3): softmax(gamma * (S - beta * mean S)).
GAMMA, BETA = 3.0, 1.2


def ranking(similarity: np.ndarray, same: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve, and average precision, of "same" by similarity.

    Args:
        similarity: (P,).
        same: (P,) bool, with both kinds present. Ties fall in the order of `np.argsort`.
    """
    hits = same[np.argsort(-similarity, kind="stable")]
    found = np.cumsum(hits)
    missed = np.cumsum(~hits)
    auc = float(found[~hits].mean() / found[-1])
    precision = float((found / (found + missed))[hits].mean())
    return auc, precision


def proxy_reading(similarity: Tensor, same: Tensor, known: Tensor) -> tuple[float, float]:
    """What ProxyCLIP makes of a guide: how much of its attention is right, how much of a thing it reaches.

    Args:
        similarity: (N, N) cosines of all patches.
        same: (N, N) bool.
        known: (N,) bool, patches that show one thing; rows and columns of others do not count.

    Returns:
        The share of attention, on other patches than the own, that stays on the own thing; and the share of
        pairs of one thing that are not dropped.
    """
    scores = GAMMA * (similarity - BETA * similarity.mean())
    kept = scores >= 0
    attention = scores.masked_fill(~kept, -torch.inf).softmax(-1).nan_to_num(0.0)
    count = known[:, None] & known & ~torch.eye(len(known), dtype=torch.bool)
    attention = attention * count
    share = (attention * same).sum(-1) / attention.sum(-1).clamp(min=1e-9)
    return float(share[known].mean()), float(kept[count & same].float().mean())


@torch.no_grad()
def evaluate_guide(
    read: Callable[[Tensor], dict[str, Tensor]],
    *,
    patch: int = 8,
    length: int = 24,
    size_hw: tuple[int, int] = (224, 288),
    split: str = "val",
    purity: float = 0.7,
    seed: int = 0,
) -> dict[str, float]:
    """Means over scenes of pair figures, for each reading and for the mean RGB of patches.

    Args:
        read: (1, 3, H, W) RGB in [0, 1] to named features (1, N, D).
        patch: px.
        length: scenes.
        size_hw: px, multiples of the patch.
        split: of `ovseg.scenes`.
        purity: share that one thing must cover for a patch to count.
        seed: which scenes.

    Returns:
        `<reading>_auc` and `_ap` of "same thing" by cosine (RGB: by distance), `_mass` and `_reach` as
        `proxy_reading` gives them, and `same`, the share of pairs that are the same (what chance would score
        as average precision).
    """
    scenes = SceneSet(split, seed, length=length, size_hw=size_hw)
    rows: list[dict[str, float]] = []
    for index in range(length):
        scene = scenes[index]
        regions, names = scene_regions(scene, scenes.classes)
        share = torch.from_numpy(patch_shares(regions, scene.defects, patch, len(names))[0])
        covered, region = share.max(0)
        known = covered > purity
        same = region[:, None] == region
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 255
        rgb = F.avg_pool2d(image, patch).flatten(2)[0].T
        closeness = {"rgb": -torch.cdist(rgb, rgb).square()}
        for name, features in read(image).items():
            unit = F.normalize(features[0].float(), dim=-1)
            closeness[name] = unit @ unit.T

        places = np.random.default_rng([seed, index]).permutation(np.flatnonzero(known.numpy()))[:300]
        upper = np.triu_indices(len(places), 1)
        i, j = torch.from_numpy(places[upper[0]]), torch.from_numpy(places[upper[1]])
        truth = same[i, j].numpy()
        if truth.all() or not truth.any():
            continue
        row = {"same": float(truth.mean())}
        for name, similarity in closeness.items():
            row[f"{name}_auc"], row[f"{name}_ap"] = ranking(similarity[i, j].numpy(), truth)
            if name != "rgb":
                row[f"{name}_mass"], row[f"{name}_reach"] = proxy_reading(similarity, same, known)
        rows.append(row)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
