"""Correlation inside regions: a patch listens to its own region, and not to what merely looks alike.

With `S` the cosine of a guide's patch features, `A = softmax(sharpness * S)` over the allowed pairs: two
patches of one region, or a pair with an unsegmented patch whose similarity is above the mean. Regions that
look alike are merged first.

Source: Zhang et al., CorrCLIP, arXiv 2411.10086; github.com/zdk258/CorrCLIP at 103bc182, CorrCLIPv1.
Deviations: id 0 is what no region covers, and padding is a region of its own that takes part in nothing.
The code (`as_published=True`) takes the lowest id of a window for the unsegmented one, also where that is a
real region, and lets padding be merged with regions like any other. A patch is always allowed to itself, so
no row is empty on a flat image.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovseg.regions import UNSEGMENTED

#: The id of padding around a window; the largest id where the published behaviour is asked for.
PADDING, PUBLISHED_PADDING = -1, 10000


def merge_regions(
    ids: Int[Tensor, " N"],
    features: Float[Tensor, "N C"],
    *,
    within: float = 0.2,
    as_published: bool = False,
) -> Int[Tensor, " N"]:
    """Regions with similar mean features as one, under the smallest of their ids.

    Two regions are joined where their cosine is at most `within` below the largest cosine there is, and
    whatever a chain of such pairs connects is one region. That is DBSCAN with `min_samples=1`, which the
    published code runs: every point is a core point, so its clusters are the connected components.

    Args:
        ids: the region of each patch.
        features: of each patch, unit length.
        within: see above (eps of DBSCAN).
        as_published: see the module.
    """
    values, index = ids.unique(return_inverse=True)
    merges = torch.arange(len(values), device=ids.device) > 0 if as_published else values > UNSEGMENTED
    if int(merges.sum()) < 2:
        return ids
    members = F.one_hot(index, len(values)).to(features.dtype)
    mean = F.normalize(members.T @ features, dim=1)[merges]  # of the sum, which has the mean's direction
    cosine = mean @ mean.T
    joined = connected(cosine.max() - cosine <= within)
    values = values.clone()
    values[merges] = values[merges][joined]
    return values[index]


def connected(pairs: Bool[Tensor, "R R"]) -> Int[Tensor, " R"]:
    """The first member of each node's connected component, for a symmetric relation."""
    reach = pairs | torch.eye(len(pairs), dtype=torch.bool, device=pairs.device)
    for _ in range(len(pairs).bit_length()):  # doubles the length of paths
        reach = (reach.float() @ reach.float()) > 0
    return reach.int().argmax(dim=1)


def region_softmax(
    similarity: Float[Tensor, "B N N"],
    ids: Int[Tensor, "B N"],
    *,
    sharpness: float = 4.0,
    as_published: bool = False,
) -> Float[Tensor, "B N N"]:
    """Attention within regions, see the module; rows sum to 1.

    Args:
        similarity: cosines.
        ids: the region of each patch.
        sharpness: factor before the softmax (inverse temperature).
        as_published: see the module.
    """
    loose = ids == (ids.amin(dim=1, keepdim=True) if as_published else UNSEGMENTED)
    outside = torch.zeros_like(loose) if as_published else ids == PADDING
    own = torch.eye(ids.shape[1], dtype=torch.bool, device=ids.device)
    allowed = (ids[:, :, None] == ids[:, None]) & ~loose[:, :, None]
    near = (loose[:, :, None] | loose[:, None]) & (similarity > similarity.mean(dim=(1, 2), keepdim=True))
    allowed = allowed | own | (near & ~outside[:, :, None] & ~outside[:, None])
    return (sharpness * similarity).masked_fill(~allowed, -torch.inf).softmax(dim=-1)
