"""CLIP Surgery: a second path through the last blocks, of value-value attention alone, and feature surgery.

The original path goes on unchanged. The new one starts from its stream at the first dual block and is updated
by attention only, `n <- n + proj(softmax(v v^T / sqrt(d)) v)` with `v` of the original path; its patch tokens
are the features. Scores are cosines, weighted by how much the image's class token likes the class, minus what
all classes share.

Source: Li et al., arXiv 2304.05653, sections 3.2 and 3.3; github.com/xmed-lab/CLIP_Surgery at d4696d47.
Deviations: position embeddings are resampled without overwriting the parameter, also when another grid has
the same number of patches (`as_published=True`: then they are not). Any number of images at once, where the
published surgery takes one. `sam_points` gives none on a flat map, where the published code divides by 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.encoders.towers import Tower
from ovseg.errors import ConfigError
from ovseg.score_map import ScoreMap
from ovseg.scorer import Scorer
from ovseg.structures import DenseFeatures, PatchFeatures, TextBank
from ovseg.windows import WindowPlan, whole_patches

#: q, k, v `(B, G, N, d)` of a block to mixed values.
Mix: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
#: Told a block's index, q and k.
Watch: TypeAlias = Callable[[int, Tensor, Tensor], None]


def feature_surgery(
    patches: Float[Tensor, "B N D"], image: Float[Tensor, "B D"], text: Float[Tensor, "Q D"]
) -> Float[Tensor, "B N Q"]:
    """Cosines without what all classes have in common.

    `s_iq = w_q (f_i . t_q) - mean_q' w_q' (f_i . t_q')` with `w = softmax_q(2 g . t_q)`, divided by its mean.

    Args:
        patches: f, unit length.
        image: g, the class token, unit length.
        text: t, unit length.
    """
    weights = (2 * image @ text.T).softmax(dim=-1)
    weights = weights / weights.mean(dim=-1, keepdim=True)
    scores = weights[:, None] * (patches @ text.T)
    return scores - scores.mean(dim=-1, keepdim=True)


def dual_streams(
    tower: Tower, tokens: Float[Tensor, "B N C"], dual_blocks: int, mix: Mix, watch: Watch | None = None
) -> Iterator[tuple[Float[Tensor, "B N C"], Float[Tensor, "B N C"]]]:
    """The original stream and the new one after every block; the same until the first dual block.

    Args:
        tower: the image tower.
        tokens: what enters its first block.
        dual_blocks: how many of the last blocks have the second path; all, where there are fewer.
        mix: what the new path adds, before the out-projection, of each dual block's q, k and v.
        watch: told the index, q and k of every block.

    Raises:
        ConfigError: there would be no second path.
    """
    if dual_blocks < 1:
        raise ConfigError(f"dual_blocks must be at least 1, got {dual_blocks}")
    first = max(len(tower.blocks) - dual_blocks, 0)
    new = tokens
    for index, block in enumerate(tower.blocks):
        if index < first and watch is None:
            tokens = new = block(tokens)
        else:
            query, key, value = block.split(tokens)
            if watch is not None:
                watch(index, query, key)
            original = block.project(F.scaled_dot_product_attention(query, key, value))
            tokens = block.feed_forward(tokens + original)
            new = tokens if index < first else new + block.project(mix(query, key, value))
        yield tokens, new


def two_paths(
    tower: Tower, tokens: Float[Tensor, "B N C"], dual_blocks: int, mix: Mix, watch: Watch | None = None
) -> Float[Tensor, "B N D"]:
    """Final, projected tokens: prefix of the original path, patches of the new one. See `dual_streams`."""
    original, new = deque(dual_streams(tower, tokens, dual_blocks, mix, watch), maxlen=1).pop()
    return tower.finish(torch.cat([original[:, : tower.num_prefix], new[:, tower.num_prefix :]], dim=1))


def value_attention(query: Tensor, key: Tensor, value: Float[Tensor, "B G N d"]) -> Float[Tensor, "B G N d"]:
    """`softmax(v v^T / sqrt(d)) v`, what CLIP Surgery adds to the new path."""
    return F.scaled_dot_product_attention(value, value, value)


def single_text_surgery(
    patches: Float[Tensor, "B N D"], text: Float[Tensor, "Q D"], redundant: Float[Tensor, " D"]
) -> Float[Tensor, "B N Q"]:
    """Surgery where there is nothing to compare with: `f_i . (t_q - r)`.

    Args:
        patches: f, unit length.
        text: t, unit length.
        redundant: r, what any sentence has in common: the mean embedding of empty or unrelated ones.
    """
    return patches @ (text - redundant).T


def unit_maps(maps: Float[Tensor, "*lead h w"]) -> Float[Tensor, "*lead h w"]:
    """Each map stretched to [0, 1] by itself; a flat one is 0."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)


def sam_points(
    scores: Float[Tensor, "h w"], image_hw: tuple[int, int], *, threshold: float = 0.8, downsample: int = 2
) -> tuple[Int[np.ndarray, "points 2"], UInt8[np.ndarray, " points"]]:
    """Where to prompt SAM: centres of the best cells of a map, and of as many of the worst.

    The map is made smaller first, which smooths it. At most half of the cells are positive.

    Args:
        scores: of one class, higher is more likely.
        image_hw: pixels of the picture that the points are for.
        threshold: least score, after the map is stretched to [0, 1], of a positive cell.
        downsample: by what each side of the map shrinks.

    Returns:
        Points `(x, y)` in pixels and labels: 1 for those on the object, in ascending order of their score,
        then 0 for as many on the background. Nothing where the map is flat.
    """
    small_hw = (max(scores.shape[0] // downsample, 1), max(scores.shape[1] // downsample, 1))
    small = F.interpolate(scores[None, None], size=small_hw, mode="bilinear", align_corners=False)[0, 0]
    small = unit_maps(small).flatten()
    count = min(int((small >= threshold).sum()), len(small) // 2)
    order = small.argsort().cpu().numpy()
    cells = np.concatenate([order[len(order) - count :], order[:count]])
    centres = np.stack([cells % small_hw[1], cells // small_hw[1]], axis=1) + 0.5
    points = (centres * [image_hw[1] / small_hw[1], image_hw[0] / small_hw[0]]).astype(np.int64)
    return points, np.repeat(np.array([1, 0], dtype=np.uint8), count)


class SurgeryScorer(Scorer):
    """Two paths through the last blocks, and feature surgery.

    Args:
        encoder: the image tower.
        dual_blocks: how many of the last blocks have the second path.
        options: of `Scorer`.
    """

    def __init__(self, encoder: ClipEncoder, *, dual_blocks: int, **options) -> None:
        super().__init__(encoder, **options)
        self.dual_blocks = dual_blocks

    def features(self, image: Float[Tensor, "B 3 H W"]) -> PatchFeatures:
        """Patch tokens of the new path, class token of the original one."""
        return self.dual(image, value_attention)

    def dual(self, image: Float[Tensor, "B 3 H W"], mix: Mix, watch: Watch | None = None) -> PatchFeatures:
        """The same for any attention. See `two_paths`."""
        tower = self.encoder.tower
        pixels = whole_patches(image, self.encoder.patch_hw)
        tokens, hw = self.encoder.embed(pixels, self.positions)
        both = two_paths(tower, tokens, self.dual_blocks, mix, watch)
        prefix, patches = both[:, : tower.num_prefix], both[:, tower.num_prefix :]
        return PatchFeatures(patches.mT.unflatten(-1, hw), prefix, (pixels.shape[-2], pixels.shape[-1]))

    def score(self, features: DenseFeatures, bank: TextBank) -> ScoreMap:
        """A score map of surgery scores instead of cosines."""
        plain = super().score(features, bank)
        if features.image is None:
            raise ConfigError("feature surgery needs a class token, and this tower has none: use a CLIP ViT")
        grid = features.grid.flatten(2).mT
        scores = feature_surgery(grid, features.image, plain.bank.embeddings)
        return replace(plain, cosine=scores.mT.unflatten(-1, plain.cosine.shape[-2:]))


def clip_surgery(
    encoder: ClipEncoder,
    *,
    short_side: int | None = 512,
    crop: int | None = None,
    stride: int | None = None,
    dual_blocks: int = 6,
    temperature: float = 100.0,
    as_published: bool = False,
) -> Scorer:
    """CLIP Surgery on the whole image.

    Args:
        encoder: the image tower.
        short_side: resize to this first; None keeps the image's size.
        crop: window side in pixels; None takes the whole image at once, as published.
        stride: step between windows.
        dual_blocks: how many of the last blocks have the second path.
        temperature: logit scale.
        as_published: see above.
    """
    return SurgeryScorer(
        encoder,
        dual_blocks=dual_blocks,
        windows=WindowPlan(crop, stride),
        positions=PositionRule("bilinear", as_published),
        short_side=short_side,
        temperature=temperature,
    )
