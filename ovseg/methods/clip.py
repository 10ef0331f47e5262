"""CLIP's dense tokens: the baseline that every other method improves.

All blocks as trained; patch tokens are normalised, projected and compared with the words. Windows as in
SCLIP's evaluation, whose code has this baseline as its `vanilla` attention.

Source: Radford et al., arXiv 2103.00020; github.com/wangf3014/SCLIP at b56bd301.
"""

from __future__ import annotations

from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.scorer import Scorer
from ovseg.windows import WindowPlan


def clip(
    encoder: ClipEncoder,
    *,
    short_side: int | None = 336,
    crop: int | None = 224,
    stride: int | None = 112,
    temperature: float = 40.0,
    as_published: bool = False,
) -> Scorer:
    """CLIP dense tokens over sliding windows.

    Args:
        encoder: the image tower.
        short_side: resize to this first; None keeps the image's size.
        crop: window side in pixels; None takes the whole image at once.
        stride: step between windows.
        temperature: logit scale.
        as_published: keep position embeddings unresampled when only the number of patches agrees.
    """
    return Scorer(
        encoder,
        windows=WindowPlan(crop, stride),
        positions=PositionRule(as_published=as_published),
        short_side=short_side,
        temperature=temperature,
    )
