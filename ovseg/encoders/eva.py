"""DINOv3 in pieces: timm's `Eva`, whose positions are rotations of queries and keys.

Source of the architecture: Simeoni et al., "DINOv3", arXiv 2508.10104; timm's port of it (`timm.models.eva`).
"""

from __future__ import annotations

from typing import Any

import timm.layers
import timm.models.eva
import torch.nn.functional as F
from torch import Tensor, cat, zeros_like

from ovseg.encoders.positions import PositionRule
from ovseg.encoders.towers import QKV, Block
from ovseg.errors import CheckpointError


class _EvaBlock:
    """A block, on a grid or, with `rotation` None, without positions."""

    def __init__(self, block: Any, rotation: Tensor | None) -> None:
        self.block = block
        self.rotation = rotation

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.block(tokens, rope=self.rotation)

    def compile(self, backend: str = "inductor") -> None:
        self.block.compile(dynamic=True, backend=backend)

    def split(self, tokens: Tensor) -> QKV:
        attention = self.block.attn
        bias = None
        if attention.q_bias is not None:  # keys have none
            bias = cat([attention.q_bias, zeros_like(attention.q_bias), attention.v_bias])
        qkv = F.linear(self.block.norm1(tokens), attention.qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self._rotate(attention.q_norm(q)), self._rotate(attention.k_norm(k)), v

    def _rotate(self, heads: Tensor) -> Tensor:
        if self.rotation is None:
            return heads
        attention = self.block.attn
        prefix, patches = heads.tensor_split([attention.num_prefix_tokens], dim=2)
        rotated = timm.layers.apply_rot_embed_cat(patches, self.rotation, half=attention.rotate_half)
        return cat([prefix, rotated.to(prefix.dtype)], dim=2)

    def project(self, values: Tensor) -> Tensor:
        attention = self.block.attn
        return _scaled(attention.proj(attention.norm(values.transpose(1, 2).flatten(2))), self.block.gamma_1)

    def ffn_input(self, tokens: Tensor) -> Tensor:
        return self.block.norm2(tokens)

    def feed_forward(self, tokens: Tensor) -> Tensor:
        return tokens + _scaled(self.block.mlp(self.ffn_input(tokens)), self.block.gamma_2)


def _scaled(tokens: Tensor, scale: Tensor | None) -> Tensor:
    return tokens if scale is None else scale * tokens


class EvaTrunk:
    """A timm `Eva` with rotary positions only, in pieces, without its head.

    Attributes:
        blocks: without positions: their `split` gives the plain projections. See `blocks_on`.

    Raises:
        CheckpointError: another kind of `Eva`.
    """

    def __init__(self, trunk: Any) -> None:
        block = trunk.blocks[0]
        attention = block.attn
        for fits, what in (
            (type(block) is timm.models.eva.EvaBlock, "pre-norm blocks"),
            (type(attention) is timm.models.eva.EvaAttention, "plain attention"),
            (getattr(attention, "qkv", None) is not None, "one projection for q, k and v"),
            (getattr(attention, "gate", None) is None, "no gate"),
            (trunk.pos_embed is None and trunk.rope is not None, "rotary positions only"),
            (not trunk.rope_mixed, "the same rotation in all blocks"),
        ):
            if not fits:
                raise CheckpointError(
                    f"this guide is a timm Eva, but none with {what} as DINOv3 has: use DINOv3 ViT-S, B, L, "
                    f"or a plain ViT such as DINO or DINOv2"
                )
        self.trunk = trunk
        self.patch_hw: tuple[int, int] = tuple(trunk.patch_embed.patch_size)
        self.trained_hw: tuple[int, int] = tuple(trunk.patch_embed.grid_size)
        self.num_prefix: int = trunk.num_prefix_tokens
        self.blocks: list[Block] = [_EvaBlock(each, None) for each in trunk.blocks]

    def blocks_on(self, hw: tuple[int, int]) -> list[Block]:
        """The blocks as trained, for a grid: queries and keys of patches are rotated."""
        rotation = self.trunk.rope.get_embed(shape=list(hw))
        return [_EvaBlock(each, rotation) for each in self.trunk.blocks]

    def embed(self, pixels: Tensor, positions: PositionRule) -> tuple[Tensor, tuple[int, int]]:
        """See `Tower`; there is nothing to resample."""
        del positions
        trunk = self.trunk
        grid = trunk.patch_embed.proj(pixels)
        patches = trunk.patch_embed.norm(grid.flatten(2).mT)
        prefix = [t.expand(len(grid), -1, -1) for t in (trunk.cls_token, trunk.reg_token) if t is not None]
        return trunk.norm_pre(cat([*prefix, patches], dim=1)), (grid.shape[-2], grid.shape[-1])

    def finish(self, tokens: Tensor) -> Tensor:
        """The final norm."""
        return self.trunk.norm(tokens)
