"""CLIP-DINOiser: two trained convolutions teach MaskCLIP's features which patches belong together.

A 3x3 convolution on an inner block's features predicts DINO's correlations, and MaskCLIP's dense features are
pooled with them; a 1x1 convolution predicts where any object is, and unsure patches elsewhere become
background, if the vocabulary has a background class. No DINO at inference.

Source: Wysoczanska et al., arXiv 2312.12359; github.com/wysoczanska/clip_dinoiser at a954aae6.
Deviations: position embeddings as in `maskclip`.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.correlation.pooling import cosine_correlation, threshold_pooling
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.scorer import Scorer
from ovseg.structures import PatchFeatures
from ovseg.windows import WindowPlan, whole_patches


class DinoiserConvolutions(nn.Module):
    """The two convolutions, under the names of the official checkpoint.

    Args:
        width: channels of the tower.
        hidden: channels of the correlation features.
    """

    def __init__(self, width: int = 768, hidden: int = 256) -> None:
        super().__init__()
        self.obj_proj = nn.Conv2d(width, hidden, 3, padding=1, padding_mode="replicate")
        self.bkg_decoder = nn.Conv2d(width, 1, 1)

    def forward(
        self, inner: Float[Tensor, "B C h w"]
    ) -> tuple[Float[Tensor, "B N N"], Float[Tensor, "B 1 h w"]]:
        """Correlations in [-1, 1] and objectness logits."""
        return cosine_correlation(self.obj_proj(inner)), self.bkg_decoder(F.normalize(inner, dim=1))


class DinoiserScorer(Scorer):
    """MaskCLIP's features, pooled with learned correlations.

    Args:
        encoder: the image tower.
        convolutions: trained for that tower.
        threshold: correlations below it count as 0 (gamma in the paper).
        tap: the block whose normalised FFN input feeds the convolutions.
        options: of `Scorer`.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        convolutions: DinoiserConvolutions,
        *,
        threshold: float,
        tap: int,
        **options,
    ) -> None:
        super().__init__(encoder, **options)
        self.convolutions = convolutions
        self.threshold = threshold
        self.tap = tap

    def features(self, image: Float[Tensor, "B 3 H W"]) -> PatchFeatures:
        """Pooled dense features, and objectness."""
        pixels = whole_patches(image, self.encoder.patch_hw)
        block = self.encoder.open(pixels, positions=self.positions, ffn_taps=[self.tap])
        dense = self.encoder.close(
            block.v,
            hw=block.hw,
            num_prefix=block.num_prefix,
            image_hw=block.image_hw,
            residual=block.residual,
        )
        inner = block.ffn_taps[self.tap][:, block.num_prefix :].mT.unflatten(-1, block.hw)
        correlation, objectness = self.convolutions(inner)
        pooled = threshold_pooling(dense.grid, correlation, self.threshold)
        return PatchFeatures(pooled, dense.prefix, dense.image_hw, objectness)


def clip_dinoiser(
    encoder: ClipEncoder,
    convolutions: DinoiserConvolutions,
    *,
    short_side: int | None = 448,
    crop: int | None = 448,
    stride: int | None = 224,
    temperature: float = 100.0,
    threshold: float = 0.2,
    tap: int = -3,
    sure: float = 0.99,
    as_published: bool = False,
) -> Scorer:
    """CLIP-DINOiser over sliding windows.

    Args:
        encoder: the image tower.
        convolutions: trained for that tower.
        short_side: resize to this first; None keeps the image's size.
        crop: window side in pixels; None takes the whole image at once.
        stride: step between windows.
        temperature: logit scale.
        threshold: correlations below it count as 0 (gamma in the paper).
        tap: the block whose normalised FFN input feeds the convolutions.
        sure: patches whose best class is less probable may become background (delta in the paper).
        as_published: keep position embeddings unresampled when only the number of patches agrees.
    """
    return DinoiserScorer(
        encoder,
        convolutions,
        threshold=threshold,
        tap=tap,
        windows=WindowPlan(crop, stride, fit="pad_end", pad_with="black", via_input=True),
        positions=PositionRule("size", as_published),
        short_side=short_side,
        temperature=temperature,
        softmax_at="patch",
        sure=sure,
    )
