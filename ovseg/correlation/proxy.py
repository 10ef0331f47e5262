"""Affinities from a guide's features: what looks alike to DINO shares its meaning.

`A = softmax(sharpness * (S - shift * mean S))` over the pairs where the argument is not negative, with `S`
the cosine of the guide's patch features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.errors import ConfigError
from ovseg.structures import Affinity, OpenBlock, PatchFeatures


def shifted_softmax(
    similarity: Float[Tensor, "B N N"], *, shift: float, sharpness: float, whole_batch: bool = False
) -> Float[Tensor, "B N N"]:
    """The kernel above, float32; rows sum to 1.

    A patch is always kept for itself, so no row is empty, on a flat image neither.

    Args:
        similarity: cosines.
        shift: times the mean that is subtracted (beta in ProxyCLIP).
        sharpness: factor before the softmax (gamma in ProxyCLIP).
        whole_batch: take the mean over the batch and not per image, so that an image's result depends on
            its neighbours.
    """
    mean = similarity.mean() if whole_batch else similarity.mean(dim=(1, 2), keepdim=True)
    logits = (similarity - shift * mean).mul_(sharpness)
    patches = torch.arange(logits.shape[-1], device=logits.device)
    unlike = (logits < 0) & (patches[:, None] != patches)
    return logits.masked_fill_(unlike, -torch.inf).softmax(dim=-1)


class ProxyCorrelation(nn.Module):
    """ProxyCLIP's proxy attention: the guide's patches decide, on the guide's own grid; no class token.

    Source: Lan et al., arXiv 2408.04883, section 3.3; github.com/mc-lan/ProxyCLIP at e7b767fb.
    Deviations: the mean is per image and the self pair is always kept; `as_published=True` takes the mean
    over the whole batch, as the code does.

    Args:
        shift: beta in the paper.
        sharpness: gamma in the paper.
        as_published: see above.
    """

    def __init__(self, shift: float = 1.2, sharpness: float = 3.0, *, as_published: bool = False) -> None:
        super().__init__()
        if sharpness <= 0:
            raise ConfigError(f"sharpness must be above 0, got {sharpness}")
        self.shift = shift
        self.sharpness = sharpness
        self.as_published = as_published

    def forward(self, block: OpenBlock, guide: PatchFeatures | None = None) -> Affinity:
        """One matrix for all heads, on the guide's grid.

        Raises:
            ConfigError: there is no guide.
        """
        if guide is None:
            raise ConfigError(
                "proxy attention needs a guide encoder (DINO, DINOv2 or SAM): give the method one"
            )
        features = F.normalize(guide.grid.float().flatten(2), dim=1)
        similarity = features.mT @ features
        matrix = shifted_softmax(
            similarity, shift=self.shift, sharpness=self.sharpness, whole_batch=self.as_published
        )
        return Affinity((guide.grid.shape[-2], guide.grid.shape[-1]), 0, matrix=matrix[:, None])
