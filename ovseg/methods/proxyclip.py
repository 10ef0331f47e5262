"""ProxyCLIP: a guide's patch similarity replaces the last block's attention; no residual, no FFN.

Values are upsampled to the guide's grid. Each window is padded with the mean colour to a multiple of 56,
centred: a common multiple of the guides' patches 8 and 14, not of CLIP's 16, whose remainder is dropped.

Source: Lan et al., arXiv 2408.04883, section 3; github.com/mc-lan/ProxyCLIP at e7b767fb.
Deviations: the mean similarity is per image; grids may be other than square (the code mixes up height and
width). `as_published=True`: mean over the batch, position embeddings unresampled when the count agrees.
"""

from __future__ import annotations

from torch import nn

from ovseg.correlation import ProxyCorrelation
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.scorer import Scorer
from ovseg.windows import WindowPlan


def proxyclip(
    encoder: ClipEncoder,
    guide: nn.Module,
    *,
    short_side: int | None = 336,
    crop: int | None = 336,
    stride: int | None = 112,
    temperature: float = 40.0,
    shift: float = 1.2,
    sharpness: float = 3.0,
    max_batch: int = 32,
    as_published: bool = False,
) -> Scorer:
    """ProxyCLIP over sliding windows.

    Args:
        encoder: the image tower.
        guide: DINO, DINOv2 or SAM.
        short_side: resize to this first (448 for ADE20K and Cityscapes); None keeps the image's size.
        crop: window side in pixels (224 for Cityscapes); None takes the whole image at once.
        stride: step between windows.
        temperature: logit scale.
        shift: how far above the mean a similarity must be (beta in the paper).
        sharpness: of the softmax (gamma in the paper).
        max_batch: windows at once.
        as_published: see above.
    """
    return Scorer(
        encoder,
        ProxyCorrelation(shift, sharpness, as_published=as_published),
        residual=False,
        windows=WindowPlan(crop, stride, fit="pad", multiple=56, max_batch=max_batch),
        positions=PositionRule(as_published=as_published),
        guide=guide,
        short_side=short_side,
        temperature=temperature,
    )
