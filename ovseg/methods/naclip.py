"""NACLIP: key-key attention with a Gaussian of the distance added to its logits; no residual, no FFN.

PAMR is on by default, as in the published code (the paper's plain row is without, its "+PAMR" row with).
VOC20 and VOC21 take the whole image (`crop=None`).

Source: Hajimiri et al., arXiv 2404.08181, section 3; github.com/sinahmr/NACLIP at 0cac3a65.
Deviations: position embeddings are resampled also when another grid has the same number of patches
(`as_published=True`: they are not). The code divides class scores by their sum *after* the prediction was
taken, which changes no prediction; here scores are left alone.
"""

from __future__ import annotations

from ovseg.correlation import NeighbourhoodCorrelation
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.refine.pamr import PAMR
from ovseg.scorer import Scorer
from ovseg.windows import WindowPlan


def naclip(
    encoder: ClipEncoder,
    *,
    short_side: int | None = 336,
    crop: int | None = 224,
    stride: int | None = 112,
    temperature: float = 40.0,
    std_cells: float = 5.0,
    pamr_steps: int = 10,
    as_published: bool = False,
) -> Scorer:
    """NACLIP over sliding windows or the whole image.

    Args:
        encoder: the image tower.
        short_side: resize to this first (560 for Cityscapes); None keeps the image's size.
        crop: window side in pixels; None takes the whole image at once.
        stride: step between windows.
        temperature: logit scale.
        std_cells: width of the Gaussian in patches (sigma in the paper).
        pamr_steps: steps of PAMR; 0 switches it off.
        as_published: see above.
    """
    return Scorer(
        encoder,
        NeighbourhoodCorrelation(std_cells),
        residual=False,
        windows=WindowPlan(crop, stride, via_input=True),
        positions=PositionRule(as_published=as_published),
        short_side=short_side,
        temperature=temperature,
        refine=[PAMR(pamr_steps)] if pamr_steps else [],
    )
