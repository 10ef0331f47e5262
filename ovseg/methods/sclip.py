"""SCLIP: correlative self-attention in the last block.

`A = softmax(q q^T / sqrt(d)) + softmax(k k^T / sqrt(d))`, residual and FFN kept. Rows of A sum to 2, as
published. Datasets with a background class set a threshold and the area filter in the head.

Source: Wang et al., arXiv 2312.01597, section 3.2; github.com/wangf3014/SCLIP at b56bd301.
Deviations: position embeddings are resampled also when another grid has the same number of patches
(`as_published=True`: they are not).
"""

from __future__ import annotations

from ovseg.correlation import SelfCorrelation
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.refine.pamr import PAMR
from ovseg.scorer import Scorer
from ovseg.windows import WindowPlan


def sclip(
    encoder: ClipEncoder,
    *,
    short_side: int | None = 336,
    crop: int | None = 224,
    stride: int | None = 112,
    temperature: float = 40.0,
    pamr_steps: int = 0,
    as_published: bool = False,
) -> Scorer:
    """SCLIP over sliding windows.

    Args:
        encoder: the image tower.
        short_side: resize to this first (560 for Cityscapes, 448 for COCO-Stuff); None keeps the size.
        crop: window side in pixels; None takes the whole image at once.
        stride: step between windows.
        temperature: logit scale (65 for VOC21, 50 for Context60 and COCO-Object).
        pamr_steps: steps of PAMR; 0 as published.
        as_published: see above.
    """
    return Scorer(
        encoder,
        SelfCorrelation(("q", "k")),
        windows=WindowPlan(crop, stride),
        positions=PositionRule(as_published=as_published),
        short_side=short_side,
        temperature=temperature,
        refine=[PAMR(pamr_steps)] if pamr_steps else [],
    )
