"""SC-CLIP: CLIP corrects itself, by its own middle layers; no helper encoder.

Outlier tokens before the last block are replaced by their neighbours. The similarity of a middle layer's
patches pools the tokens and, beside key-key attention, leads the last block, which has no residual and no
FFN. A second branch takes the sum of several layers through the same block. An early layer's similarity pools
both results, for detail.

With `L_i` the output of block i, `x` the repaired penultimate patches and `P(S)` pooling by the similarities
that reach 0.4:
`x <- P(S_mid) x`, `y = (softmax(3 (S_mid - mean)) + softmax(k k^T / sqrt(d))) / 2 v + 0.3 class`, result
`P(S_early) y(x) + P(S_early) y(sum_i L_i)`, then the final norm and the projection.

Source: Bai et al., arXiv 2411.15869, section 3; github.com/SuleBai/SC-CLIP at 0417ba92.
Deviations: outliers are addressed by row and column of any grid. The code divides by the wrong side and is
right on square windows only; on others it repairs different cells or fails, which nothing here reproduces.
All means are per image, so that batches do not matter; the code runs one window at a time. Grids with fewer
tokens than neighbours use as many as there are. `as_published=True`: position embeddings stay unresampled
when only the number of patches agrees.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ovseg.correlation.pooling import cosine_correlation, threshold_pooling
from ovseg.correlation.proxy import shifted_softmax
from ovseg.correlation.self_correction import outliers, repair
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.errors import ConfigError
from ovseg.refine.pamr import PAMR
from ovseg.scorer import Scorer
from ovseg.structures import PatchFeatures, SoftmaxTerm, mix_heads
from ovseg.windows import WindowPlan, whole_patches

#: Of the middle, the early, the first and the last added layer, counted from 0, among 12 blocks.
PUBLISHED_LAYERS, PUBLISHED_DEPTH = (8, 3, 3, 9), 12


class SelfCorrectingScorer(Scorer):
    """The scorer whose tower corrects itself. See `sc_clip` for the options.

    Raises:
        ConfigError: a layer that the tower has not, or not before its last block.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        *,
        middle_layer: int | None,
        early_layer: int | None,
        levels: tuple[int, int] | None,
        threshold: float,
        class_weight: float,
        neighbours: int,
        outlier_share: float,
        **options,
    ) -> None:
        super().__init__(encoder, **options)
        depth = len(encoder.tower.blocks)
        middle, early, first, last = (layer_at_depth(each, depth) for each in PUBLISHED_LAYERS)
        self.middle_layer = middle if middle_layer is None else middle_layer
        self.early_layer = early if early_layer is None else early_layer
        first, last = (first, last) if levels is None else levels
        self.levels = range(first, last + 1)
        for layer in (self.middle_layer, self.early_layer, first, last):
            if not 0 <= layer < depth - 1:
                raise ConfigError(f"no layer {layer} before the last block: the tower has {depth} blocks")
        if not self.levels:
            raise ConfigError(f"levels must be (first, last) with first <= last, got {levels}")
        self.threshold = threshold
        self.class_weight = class_weight
        self.neighbours = neighbours
        self.outlier_share = outlier_share

    def features(self, image: Float[Tensor, "B 3 H W"]) -> PatchFeatures:
        """Patch features alone: the class token ends before the last block."""
        pixels = whole_patches(image, self.encoder.patch_hw)
        taps = {self.middle_layer, self.early_layer, *self.levels}
        block = self.encoder.open(pixels, taps=taps, positions=self.positions)
        prefix, hw = block.num_prefix, block.hw

        def grid(tokens: Tensor) -> Float[Tensor, "B C h w"]:
            return tokens[:, prefix:].mT.unflatten(-1, hw)

        broken = outliers(block.residual[:, prefix:], neighbours=self.neighbours, share=self.outlier_share)
        broken = broken.unflatten(1, hw)
        similarity = cosine_correlation(repair(grid(block.taps[self.middle_layer]), broken))
        detail = cosine_correlation(grid(block.taps[self.early_layer]))
        attention = shifted_softmax(similarity, shift=1.0, sharpness=3.0)
        pooled = threshold_pooling(repair(grid(block.residual), broken), similarity, self.threshold)
        several = torch.stack([block.taps[layer] for layer in self.levels]).sum(dim=0)
        total = torch.zeros_like(pooled)
        for patches, with_class in ((pooled, block.residual), (grid(several), several)):
            attended = self._attend(patches.flatten(2).mT, attention)
            if prefix:
                attended = attended + self.class_weight * with_class[:, :1]
            total = total + threshold_pooling(attended.mT.unflatten(-1, hw), detail, self.threshold)
        final = self.encoder.tower.finish(total.flatten(2).mT)
        return PatchFeatures(final.mT.unflatten(-1, hw), final[:, :0], block.image_hw)

    def _attend(
        self, patches: Float[Tensor, "B N C"], attention: Float[Tensor, "B N N"]
    ) -> Float[Tensor, "B N C"]:
        """The last block's attention: half by the given matrix, half key-key."""
        last = self.encoder.tower.blocks[-1]
        _, key, value = last.split(patches)
        led = mix_heads(attention, value)
        return last.project((led + SoftmaxTerm(key, key).mix(value)) / 2)


def layer_at_depth(published: int, depth: int) -> int:
    """The layer after the same share of blocks as the published one, rounded down, of another tower.

    Args:
        published: counted from 0, of 12 blocks.
        depth: blocks of the tower.
    """
    return max((published + 1) * depth // PUBLISHED_DEPTH, 1) - 1


def sc_clip(
    encoder: ClipEncoder,
    *,
    short_side: int | None = 336,
    crop: int | None = 224,
    stride: int | None = 112,
    temperature: float = 40.0,
    middle_layer: int | None = None,
    early_layer: int | None = None,
    levels: tuple[int, int] | None = None,
    threshold: float = 0.4,
    class_weight: float = 0.3,
    neighbours: int = 30,
    outlier_share: float = 0.05,
    pamr_steps: int = 0,
    as_published: bool = False,
) -> Scorer:
    """SC-CLIP over sliding windows.

    Layers are counted from 0. Those left out follow from the tower's depth: 8, 3 and 3 to 9 of 12 blocks as
    published (for any ViT-B), 17, 7 and 7 to 19 of 24.

    Args:
        encoder: the image tower.
        short_side: resize to this first (560 for Cityscapes); None keeps the image's size.
        crop: window side in pixels; None takes the whole image at once.
        stride: step between windows.
        temperature: logit scale (50 for VOC21, 55 for COCO-Object).
        middle_layer: its similarity pools the tokens and leads the last block.
        early_layer: its similarity pools the results.
        levels: first and last of the layers that are added up.
        threshold: similarities below it count as 0 in pooling (beta in the code).
        class_weight: of the class token that is added to every patch.
        neighbours: of the local outlier factor.
        outlier_share: tokens that are replaced, as a share.
        pamr_steps: steps of PAMR; 0 as published.
        as_published: see above.
    """
    return SelfCorrectingScorer(
        encoder,
        middle_layer=middle_layer,
        early_layer=early_layer,
        levels=levels,
        threshold=threshold,
        class_weight=class_weight,
        neighbours=neighbours,
        outlier_share=outlier_share,
        windows=WindowPlan(crop, stride),
        positions=PositionRule(as_published=as_published),
        short_side=short_side,
        temperature=temperature,
        refine=[PAMR(pamr_steps)] if pamr_steps else [],
    )
