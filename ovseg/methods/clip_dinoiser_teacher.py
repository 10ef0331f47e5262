"""CLIP-DINOiser's teacher: DINO itself says which patches belong together, FOUND where any object is.

MaskCLIP's dense features, pooled with the cosines of DINO's values. `clip_dinoiser` learns to do without the
two helpers; this is what it learns from, and about the best that it can do.

The background of FOUND acts only with vocabularies that have a background class.

Source: Wysoczanska et al., arXiv 2312.12359, sections 3.2 and 3.3; `DinoCLIP` in
github.com/wysoczanska/clip_dinoiser at a954aae6. FOUND: see `ovseg.encoders.found`.
Deviations: position embeddings as in `maskclip`; a guide may have any patch size, MaskCLIP's features are
resized to its grid.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ovseg.correlation.pooling import cosine_correlation
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.methods.clip_dinoiser import PooledScorer, Relations
from ovseg.scorer import Scorer
from ovseg.structures import OpenBlock
from ovseg.windows import WindowPlan, whole_patches


def objectness_on(logits: Float[Tensor, "B 1 y x"], hw: tuple[int, int]) -> Float[Tensor, "B 1 h w"]:
    """Objectness logits on another grid; the *probabilities* are resized (bilinear, no antialias)."""
    probability = F.interpolate(logits.float().sigmoid(), size=hw, mode="bilinear", align_corners=False)
    return probability.logit(eps=1e-6)


class TeacherScorer(PooledScorer):
    """MaskCLIP's features, pooled with a guide's correlations.

    Args:
        encoder: the image tower.
        guide: whose features are correlated.
        saliency: says where any object is.
        options: of `PooledScorer`.
    """

    def __init__(self, encoder: ClipEncoder, guide: Any, saliency: Any, **options: Any) -> None:
        super().__init__(encoder, guide=guide, **options)
        self.saliency = saliency

    def relations(self, pixels: Float[Tensor, "B 3 H W"], block: OpenBlock) -> Relations:
        """What guide and saliency say."""
        grid = self.guide(whole_patches(pixels, self.guide.patch_hw)).grid
        hw = (grid.shape[-2], grid.shape[-1])
        return Relations(cosine_correlation(grid), hw, objectness_on(self.saliency(pixels), hw))


def clip_dinoiser_teacher(
    encoder: ClipEncoder,
    guide: Any,
    saliency: Any,
    *,
    short_side: int | None = 448,
    crop: int | None = 448,
    stride: int | None = 224,
    temperature: float = 100.0,
    threshold: float = 0.2,
    sure: float = 0.99,
    residual: bool = True,
    as_published: bool = False,
) -> Scorer:
    """CLIP-DINOiser's teacher over sliding windows.

    Args:
        encoder: the image tower.
        guide: DINO (official: ViT-B/16); its last values are used, whatever its `kind`.
        saliency: FOUND (official: on DINO ViT-S/8).
        short_side: resize to this first; None keeps the image's size.
        crop: window side in pixels; None takes the whole image at once.
        stride: step between windows.
        temperature: logit scale.
        threshold: correlations below it count as 0 (gamma in the paper).
        sure: patches whose best class is less probable may become background (delta in the paper).
        residual: False drops the last block's residual and FFN, as in `maskclip`.
        as_published: keep position embeddings unresampled when only the number of patches agrees.
    """
    return TeacherScorer(
        encoder,
        guide.with_kind("v"),
        saliency,
        threshold=threshold,
        windows=WindowPlan(crop, stride, fit="pad_end", pad_with="black", via_input=True),
        positions=PositionRule("size", as_published),
        short_side=short_side,
        temperature=temperature,
        softmax_at="patch",
        sure=sure,
        residual=residual,
    )
