"""CLIP's image towers as backbones: maps at strides 4, 8, 16 and 32, and dense features in the shared space.

What dense decoders (FPN, UPerNet, RetinaNet ...) are built on. A ResNet has the four stages; its attention
pooling, made for one vector, here keeps what every position attends to. A ViT has one grid; outputs of four
blocks are brought to the four strides by small learned layers. The towers are open_clip's own modules,
stepped through, and may be trained.

Source: Rao et al., arXiv 2112.01518, sections 3.2 and 4.1; github.com/raoyongming/DenseCLIP at 5eda47f0,
segmentation/denseclip/models.py (AttentionPool2d, CLIPResNetWithAttention, CLIPVisionTransformer).
Deviations: position embeddings keep their trained grid and are resampled to each image from there (published:
resized once to the training crop, then trained at that size).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import open_clip.modified_resnet
import open_clip.transformer
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import drop_path
from torch import Tensor, nn

from ovseg.encoders.positions import PositionRule, resample_positions
from ovseg.encoders.towers import attend, wrap_tower
from ovseg.errors import CheckpointError, ConfigError
from ovseg.windows import check_divisible

POSITIONS = PositionRule("bilinear")
#: Pixels of a cell, level by level.
STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True)
class PyramidFeatures:
    """An image at four scales, and in the shared space.

    Attributes:
        levels: maps `(B, C, H / s, W / s)` for each s of `STRIDES`.
        image: the whole image's vector in the shared space, not normalised.
        grid: a vector per position in the shared space, not normalised.
    """

    levels: tuple[Float[Tensor, "B _ _ _"], ...]
    image: Float[Tensor, "B D"]
    grid: Float[Tensor, "B D h w"]

    @property
    def context(self) -> Float[Tensor, "B N D"]:
        """The image's vector, then those of all positions, row by row."""
        return torch.cat([self.image[:, None], self.grid.flatten(2).mT], dim=1)


def attention_pool(
    pool: open_clip.modified_resnet.AttentionPool2d, grid: Float[Tensor, "B C h w"]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D h w"]]:
    """CLIP's attention pooling with every position as a query, not the mean alone.

    Returns:
        The image's vector, as the pool itself gives it, and those of all positions.
    """
    hw = (grid.shape[-2], grid.shape[-1])
    trained = isqrt(pool.positional_embedding.shape[0] - 1)
    positions = resample_positions(pool.positional_embedding, (trained, trained), hw, POSITIONS)
    cells = grid.flatten(2).mT
    tokens = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1) + positions
    q, k, v = (
        project(tokens).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
        for project in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    pooled = pool.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    return pooled[:, 0], pooled[:, 1:].mT.unflatten(-1, hw)


class ClipPyramid(nn.Module):
    """Base of the two: a tower, its pixel statistics, and what the levels look like.

    Attributes:
        visual: open_clip's image tower.
        channels: of the four levels.
        dense_level: the level whose grid is that of the dense features (3 for a ResNet, 2 for a ViT).
        multiple: sides of images must be multiples of it.
    """

    channels: tuple[int, int, int, int]
    dense_level: int
    multiple: int

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual: Any = visual

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> PyramidFeatures:
        """Features of images that are normalised with the tower's statistics.

        Raises:
            ShapeError: sides are no multiples of `multiple`; the message states the nearest that are.
        """
        check_divisible((pixels.shape[-2], pixels.shape[-1]), (self.multiple, self.multiple))
        return self.features(pixels)

    def features(self, pixels: Float[Tensor, "B 3 H W"]) -> PyramidFeatures:
        """What the towers differ in."""
        raise NotImplementedError


class ResNetPyramid(ClipPyramid):
    """CLIP's ResNet: the four stages, and the attention pool on the last.

    Raises:
        CheckpointError: the tower is no CLIP ResNet.
    """

    dense_level = 3
    multiple = 32

    def __init__(self, visual: nn.Module) -> None:
        super().__init__(visual)
        if not isinstance(visual, open_clip.modified_resnet.ModifiedResNet):
            raise CheckpointError(f"a {type(visual).__name__} is no CLIP ResNet (RN50, RN101 ...)")
        base = visual.attnpool.q_proj.in_features // 8
        self.channels = (base, 2 * base, 4 * base, 8 * base)

    def features(self, pixels: Float[Tensor, "B 3 H W"]) -> PyramidFeatures:
        """See `ClipPyramid.forward`."""
        visual = self.visual
        stream = visual.stem(pixels.to(visual.conv1.weight.dtype))
        levels = []
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            stream = stage(stream)
            levels.append(stream)
        return PyramidFeatures(tuple(levels), *attention_pool(visual.attnpool, stream))


class VitPyramid(ClipPyramid):
    """CLIP's ViT of patch 16: outputs of four blocks, up- and downsampled by learned layers.

    Args:
        visual: open_clip's `VisionTransformer`.
        taps: the four blocks, counted from 0, negative from the end; None spreads them as DenseCLIP does over
            12 blocks (3, 5, 7, 11).
        drop_path_rate: stochastic depth in training, rising linearly from 0 at the first block to this.
        as_published: add the class embedding to the class token twice, once as token and once in its
            position, as the authors' code does.

    Raises:
        CheckpointError: no plain ViT, or of another patch size.
        ConfigError: not four rising taps.
    """

    dense_level = 2
    multiple = 16

    def __init__(
        self,
        visual: nn.Module,
        *,
        taps: Sequence[int] | None = None,
        drop_path_rate: float = 0.0,
        as_published: bool = False,
    ) -> None:
        super().__init__(visual)
        tower = wrap_tower(visual)
        if not isinstance(visual, open_clip.transformer.VisionTransformer) or tower.patch_hw != (16, 16):
            raise CheckpointError(
                f"a pyramid needs a CLIP ViT of patch 16 or a CLIP ResNet, got {type(visual).__name__} of "
                f"patch {tower.patch_hw[0]}: use a ViT-B/16, or RN50, RN101"
            )
        depth = len(tower.blocks)
        chosen = [round(share * depth) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1)] if taps is None else taps
        self.taps = tuple(tap % depth if -depth <= tap < depth else -1 for tap in chosen)
        if len(self.taps) != 4 or min(self.taps) < 0 or list(self.taps) != sorted(set(self.taps)):
            raise ConfigError(f"taps must be four rising blocks of 0..{depth - 1}, got {tuple(chosen)}")
        self.drop_path_rate = drop_path_rate
        self.as_published = as_published
        width = visual.conv1.out_channels
        self.channels = (width, width, width, width)
        # named as in the authors' checkpoints
        self.fpn1 = nn.Sequential(
            nn.GroupNorm(1, width),
            nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
        )
        self.fpn2 = nn.Sequential(nn.GroupNorm(1, width), nn.ConvTranspose2d(width, width, 2, stride=2))
        self.fpn3 = nn.GroupNorm(1, width)
        self.fpn4 = nn.Sequential(nn.GroupNorm(1, width), nn.MaxPool2d(kernel_size=2, stride=2))

    def features(self, pixels: Float[Tensor, "B 3 H W"]) -> PyramidFeatures:
        """See `ClipPyramid.forward`."""
        tower = wrap_tower(self.visual)
        embed = self._embed_as_published if self.as_published else tower.embed
        tokens, hw = embed(pixels.to(self.visual.conv1.weight.dtype), POSITIONS)
        outputs = []
        for index, block in enumerate(tower.blocks):
            rate = self.drop_path_rate * index / max(len(tower.blocks) - 1, 1)
            if self.training and rate > 0:
                tokens = tokens + drop_path(attend(block, tokens) - tokens, rate, True)
                tokens = tokens + drop_path(block.feed_forward(tokens) - tokens, rate, True)
            else:
                tokens = block(tokens)
            if index in self.taps:
                outputs.append(tokens[:, tower.num_prefix :].mT.unflatten(-1, hw).contiguous())
        scales = (self.fpn1, self.fpn2, self.fpn3, self.fpn4)
        levels = tuple(scale(output) for scale, output in zip(scales, outputs, strict=True))
        shared = tower.finish(tokens)
        return PyramidFeatures(levels, shared[:, 0], shared[:, tower.num_prefix :].mT.unflatten(-1, hw))

    def _embed_as_published(
        self, pixels: Float[Tensor, "B 3 H W"], positions: PositionRule
    ) -> tuple[Float[Tensor, "B N C"], tuple[int, int]]:
        visual = self.visual
        grid = visual.conv1(pixels)
        hw = (grid.shape[-2], grid.shape[-1])
        embedding = resample_positions(visual.positional_embedding, tuple(visual.grid_size), hw, positions)
        once = visual.class_embedding.expand(len(grid), 1, -1)
        return visual.ln_pre(torch.cat([2 * once, grid.flatten(2).mT], dim=1) + embedding), hw


def build_pyramid(visual: nn.Module, **options: Any) -> ClipPyramid:
    """The pyramid that fits a tower.

    Args:
        visual: open_clip's image tower.
        options: of `VitPyramid`; a ResNet takes none.

    Raises:
        CheckpointError: neither a CLIP ResNet nor a plain ViT of patch 16.
        ConfigError: options that the tower does not take.
    """
    if isinstance(visual, open_clip.modified_resnet.ModifiedResNet):
        if options:
            raise ConfigError(f"a ResNet pyramid takes no options, got {', '.join(options)}")
        return ResNetPyramid(visual)
    return VitPyramid(visual, **options)
