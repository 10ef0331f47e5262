"""CLIP-DINOiser: two trained convolutions teach MaskCLIP's features which patches belong together.

A 3x3 convolution on an inner block's features predicts DINO's correlations, and MaskCLIP's dense features are
pooled with them; a 1x1 convolution predicts where any object is, and unsure patches elsewhere become
background, if the vocabulary has a background class. No DINO at inference.

Source: Wysoczanska et al., arXiv 2312.12359; github.com/wysoczanska/clip_dinoiser at a954aae6.
Deviations: position embeddings as in `maskclip`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.correlation.pooling import cosine_correlation, threshold_pooling
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.errors import ShapeError
from ovseg.scorer import Scorer
from ovseg.structures import OpenBlock, PatchFeatures
from ovseg.windows import WindowPlan, whole_patches


class DinoiserConvolutions(nn.Module):
    """The two convolutions, under the names of the official checkpoint.

    Args:
        width: channels of the tower.
        hidden: channels of the correlation features.
        name, weights_sha256: for messages and manifests.
    """

    def __init__(
        self, width: int = 768, hidden: int = 256, *, name: str = "", weights_sha256: str = ""
    ) -> None:
        super().__init__()
        self.obj_proj = nn.Conv2d(width, hidden, 3, padding=1, padding_mode="replicate")
        self.bkg_decoder = nn.Conv2d(width, 1, 1)
        self.name = name
        self.weights_sha256 = weights_sha256

    def forward(
        self, inner: Float[Tensor, "B C h w"]
    ) -> tuple[Float[Tensor, "B N N"], Float[Tensor, "B 1 h w"]]:
        """Correlations in [-1, 1] and objectness logits.

        Raises:
            ShapeError: they were trained for a tower of another width.
        """
        width = self.obj_proj.in_channels
        if inner.shape[1] != width:
            raise ShapeError(
                f"the convolutions belong to a tower of width {width}, this one has {inner.shape[1]}: use "
                f"the CLIP that they were trained with (official: ViT-B/16 of LAION-2B; bundled: bundled)"
            )
        return cosine_correlation(self.obj_proj(inner)), self.bkg_decoder(F.normalize(inner, dim=1))

    def cast(self, dtype: torch.dtype) -> None:
        """In another precision."""
        self.to(dtype)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Nothing to compile: two convolutions."""


@dataclass(frozen=True)
class Relations:
    """What pools the features of some windows.

    Attributes:
        correlation: cosines of all pairs of cells.
        hw: the grid of those cells.
        objectness: logits of "something is here", if known.
    """

    correlation: Float[Tensor, "B N N"]
    hw: tuple[int, int]
    objectness: Float[Tensor, "B 1 h w"] | None = None


class PooledScorer(Scorer):
    """MaskCLIP's features, pooled with correlations that a subclass finds.

    Args:
        encoder: the image tower.
        threshold: correlations below it count as 0 (gamma in the paper).
        taps: blocks whose normalised FFN inputs the correlations need.
        options: of `Scorer`.
    """

    def __init__(
        self, encoder: ClipEncoder, *, threshold: float, taps: Sequence[int] = (), **options: Any
    ) -> None:
        super().__init__(encoder, **options)
        self.threshold = threshold
        self.taps = tuple(taps)

    def relations(self, pixels: Float[Tensor, "B 3 H W"], block: OpenBlock) -> Relations:
        """The correlations of some windows.

        Args:
            pixels: the windows, RGB in [0, 1], sides multiples of the tower's patch.
            block: the tower's last block, opened on them.
        """
        raise NotImplementedError

    def features(self, image: Float[Tensor, "B 3 H W"]) -> PatchFeatures:
        """Pooled dense features, and objectness; on the correlations' grid where that is another."""
        pixels = whole_patches(image, self.encoder.patch_hw)
        block = self.encoder.open(pixels, positions=self.positions, ffn_taps=self.taps)
        dense = self.encoder.close(
            block.v,
            hw=block.hw,
            num_prefix=block.num_prefix,
            image_hw=block.image_hw,
            residual=block.residual if self.residual else None,
        )
        relations = self.relations(pixels, block)
        grid = dense.grid
        if relations.hw != block.hw:
            grid = F.interpolate(grid.float(), size=relations.hw, mode="bilinear").to(grid.dtype)
        pooled = threshold_pooling(grid, relations.correlation, self.threshold)
        return PatchFeatures(pooled, dense.prefix, dense.image_hw, relations.objectness)


class DinoiserScorer(PooledScorer):
    """MaskCLIP's features, pooled with learned correlations.

    Args:
        encoder: the image tower.
        convolutions: trained for that tower.
        tap: the block whose normalised FFN input feeds the convolutions.
        options: of `PooledScorer`.
    """

    def __init__(self, encoder: ClipEncoder, convolutions: Any, *, tap: int, **options: Any) -> None:
        super().__init__(encoder, taps=[tap], **options)
        self.convolutions = convolutions
        self.tap = tap

    def relations(self, pixels: Float[Tensor, "B 3 H W"], block: OpenBlock) -> Relations:
        """What the convolutions say."""
        correlation, objectness = self.convolutions(inner_features(block, self.tap))
        return Relations(correlation, block.hw, objectness)


def inner_features(block: OpenBlock, tap: int) -> Float[Tensor, "B C h w"]:
    """The patches' normalised FFN inputs of a block that was tapped."""
    return block.ffn_taps[tap][:, block.num_prefix :].mT.unflatten(-1, block.hw)


def clip_dinoiser(
    encoder: ClipEncoder,
    convolutions: Any,
    *,
    short_side: int | None = 448,
    crop: int | None = 448,
    stride: int | None = 224,
    temperature: float = 100.0,
    threshold: float = 0.2,
    tap: int = -3,
    sure: float = 0.99,
    residual: bool = True,
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
        residual: False drops the last block's residual and FFN, as in `maskclip`.
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
        residual=residual,
    )
