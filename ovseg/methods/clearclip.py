"""ClearCLIP: query-query attention, without the last block's residual and FFN.

Each window is padded with the mean colour to a multiple of the patch, centred; the border is cropped off
the upsampled map.

Source: Lan et al., arXiv 2407.12442, section 3.3; github.com/mc-lan/ClearCLIP at ad68a404, whose shipped
configs say `vanilla` and must be set to `ClearCLIP`.
Deviations: position embeddings are resampled also when another grid has the same number of patches
(`as_published=True`: they are not).
"""

from __future__ import annotations

from ovseg.correlation import SelfCorrelation
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.scorer import Scorer
from ovseg.windows import WindowPlan


def clearclip(
    encoder: ClipEncoder,
    *,
    short_side: int | None = 448,
    crop: int | None = 448,
    stride: int | None = 224,
    temperature: float = 50.0,
    as_published: bool = False,
) -> Scorer:
    """ClearCLIP over sliding windows.

    Args:
        encoder: the image tower.
        short_side: resize to this first; None keeps the image's size.
        crop: window side in pixels (224 for Cityscapes); None takes the whole image at once, without
            padding, as the published code does.
        stride: step between windows.
        temperature: logit scale.
        as_published: see above.
    """
    return Scorer(
        encoder,
        SelfCorrelation(("q",)),
        residual=False,
        windows=WindowPlan(crop, stride, fit="floor" if crop is None else "pad"),
        positions=PositionRule(as_published=as_published),
        short_side=short_side,
        temperature=temperature,
    )
