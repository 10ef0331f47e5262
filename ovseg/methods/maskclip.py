"""MaskCLIP: every patch keeps its own value in the last block.

The value goes through the out-projection; residual and FFN are kept, as in the authors' ViT code. Windows,
padding and probabilities follow CLIP-DINOiser's evaluation of MaskCLIP: raw pixels padded with black at
right and bottom, probabilities (not cosines) upsampled and averaged over windows.

Source: Zhou et al., arXiv 2112.01071, section 3.2; github.com/chongzhou96/MaskCLIP at 245d31f8 and
github.com/wysoczanska/clip_dinoiser at a954aae6.
Deviations: prompt denoising and key smoothing, off by default in the original, are not built. The original
ViT config gives CLIP the wrong activation and statistics (GELU, ImageNet); here the tower's own are used.
"""

from __future__ import annotations

from ovseg.correlation import IdentityCorrelation
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.scorer import Scorer
from ovseg.windows import WindowPlan


def maskclip(
    encoder: ClipEncoder,
    *,
    short_side: int | None = 448,
    crop: int | None = 448,
    stride: int | None = 224,
    temperature: float = 100.0,
    residual: bool = True,
    as_published: bool = False,
) -> Scorer:
    """MaskCLIP over sliding windows.

    Args:
        encoder: the image tower.
        short_side: resize to this first; None keeps the image's size.
        crop: window side in pixels; None takes the whole image at once.
        stride: step between windows.
        temperature: logit scale.
        residual: False drops the last block's residual and FFN, the variant that later papers call
            "value path only".
        as_published: keep position embeddings unresampled when only the number of patches agrees.
    """
    return Scorer(
        encoder,
        IdentityCorrelation(),
        residual=residual,
        windows=WindowPlan(crop, stride, fit="pad_end", pad_with="black", via_input=True),
        positions=PositionRule("size", as_published),
        short_side=short_side,
        temperature=temperature,
        softmax_at="patch",
    )
