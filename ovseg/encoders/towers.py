"""Two libraries' vision transformers under one set of names.

A `Tower` lists the pieces that a method may want one at a time: embed, blocks (split into q, k, v; project;
feed forward), finish. The adapters hold no parameters; they read the modules that open_clip and timm built.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import open_clip.transformer
import timm.layers
import timm.models.vision_transformer
import torch.nn.functional as F
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from torch import Tensor, cat, nn

from ovseg.encoders.positions import PositionRule, resample_positions
from ovseg.errors import CheckpointError

QKV = tuple[Tensor, Tensor, Tensor]


@runtime_checkable
class Block(Protocol):
    """A pre-norm transformer block, whole or in pieces."""

    def __call__(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """The block as trained."""

    def compile(self, backend: str = "inductor") -> None:
        """Let torch compile the block as trained, for any number of tokens."""

    def split(self, tokens: Float[Tensor, "B N C"]) -> QKV:
        """q, k, v `(B, G, N, d)` of the normalised tokens."""

    def project(self, values: Float[Tensor, "B G N d"]) -> Float[Tensor, "B N C"]:
        """Heads concatenated, then the out-projection."""

    def ffn_input(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """The tokens as the FFN sees them: normalised."""

    def feed_forward(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """`tokens + mlp(ffn_input(tokens))`."""


@runtime_checkable
class Tower(Protocol):
    """A vision transformer in pieces."""

    patch_hw: tuple[int, int]
    trained_hw: tuple[int, int]
    num_prefix: int
    blocks: list[Block]

    def embed(
        self, pixels: Float[Tensor, "B 3 H W"], positions: PositionRule
    ) -> tuple[Float[Tensor, "B N C"], tuple[int, int]]:
        """Normalised pixels to the stream that enters the first block, and the patch grid."""

    def patches(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """The first half of `embed`: each patch by itself, without its place."""

    def enter(self, patches: Float[Tensor, "B C h w"], positions: PositionRule) -> Float[Tensor, "B N C"]:
        """The second half of `embed`: prefix tokens and positions."""

    def finish(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N D"]:
        """The final norm and the projection into the shared space, token by token."""


def wrap_tower(visual: nn.Module) -> Tower:
    """The adapter for a module.

    Raises:
        CheckpointError: no adapter fits; the message says what the module is and what would do.
    """
    if isinstance(visual, open_clip.transformer.VisionTransformer):
        return _OpenClipTower(visual)
    if isinstance(visual, TimmModel):
        return _TimmTower(visual)
    raise _unsupported(f"a {type(visual).__name__}", "it has no transformer block to open")


def _unsupported(what: str, why: str) -> CheckpointError:
    return CheckpointError(
        f"this image tower is {what}: {why}. Use a plain ViT: any open_clip ViT-B, L, H, g with class-token "
        f"pooling, SigLIP, or a timm VisionTransformer trunk"
    )


def attend(block: Block, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
    """The first half of a block as trained: `tokens + attention`."""
    q, k, v = block.split(tokens)
    return tokens + block.project(F.scaled_dot_product_attention(q, k, v))


def _heads(tokens: Tensor, heads: int) -> Tensor:
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


class _Whole:
    """A library's block as it is; how it comes apart is for its subclasses."""

    def __init__(self, block: nn.Module) -> None:
        self.block: Any = block

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.block(tokens)

    def compile(self, backend: str = "inductor") -> None:
        self.block.compile(dynamic=True, backend=backend)


class _OpenClipBlock(_Whole):
    def split(self, tokens: Tensor) -> QKV:
        attention = self.block.attn
        qkv = F.linear(self.block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = (_heads(part, attention.num_heads) for part in qkv.chunk(3, dim=-1))
        return q, k, v

    def project(self, values: Tensor) -> Tensor:
        return self.block.ls_1(self.block.attn.out_proj(values.transpose(1, 2).flatten(2)))

    def ffn_input(self, tokens: Tensor) -> Tensor:
        return self.block.ln_2(tokens)

    def feed_forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.block.ls_2(self.block.mlp(self.ffn_input(tokens)))


class _OpenClipTower:
    """`open_clip.transformer.VisionTransformer`: OpenAI's, most of LAION's, DataComp's, MetaCLIP's, DFN's."""

    num_prefix = 1

    def __init__(self, visual: Any) -> None:
        self.visual = visual
        if visual.attn_pool is not None:
            raise _unsupported("attention-pooled (CoCa)", "its patch tokens never enter the shared space")
        if not isinstance(visual.transformer.resblocks[0], open_clip.transformer.ResidualAttentionBlock):
            raise _unsupported("built of custom blocks", "their attention has further norms or scales")
        self.patch_hw: tuple[int, int] = tuple(visual.patch_size)
        self.trained_hw: tuple[int, int] = tuple(visual.grid_size)
        self.blocks: list[Block] = [_OpenClipBlock(block) for block in visual.transformer.resblocks]

    def embed(self, pixels: Tensor, positions: PositionRule) -> tuple[Tensor, tuple[int, int]]:
        grid = self.patches(pixels)
        return self.enter(grid, positions), (grid.shape[-2], grid.shape[-1])

    def patches(self, pixels: Tensor) -> Tensor:
        return self.visual.conv1(pixels)

    def enter(self, patches: Tensor, positions: PositionRule) -> Tensor:
        visual = self.visual
        hw = (patches.shape[-2], patches.shape[-1])
        embedding = resample_positions(visual.positional_embedding, self.trained_hw, hw, positions)
        class_token = visual.class_embedding.expand(patches.shape[0], 1, -1)
        return visual.ln_pre(cat([class_token, patches.flatten(2).mT], dim=1) + embedding)

    def finish(self, tokens: Tensor) -> Tensor:
        tokens = self.visual.ln_post(tokens)
        return tokens if self.visual.proj is None else tokens @ self.visual.proj


class _TimmBlock(_Whole):
    def split(self, tokens: Tensor) -> QKV:
        attention = self.block.attn
        qkv = attention.qkv(self.block.norm1(tokens))
        q, k, v = (_heads(part, attention.num_heads) for part in qkv.chunk(3, dim=-1))
        return attention.q_norm(q), attention.k_norm(k), v

    def project(self, values: Tensor) -> Tensor:
        attention = self.block.attn
        return self.block.ls1(attention.proj(attention.norm(values.transpose(1, 2).flatten(2))))

    def ffn_input(self, tokens: Tensor) -> Tensor:
        return self.block.norm2(tokens)

    def feed_forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.block.ls2(self.block.mlp(self.ffn_input(tokens)))


class TimmTrunk:
    """A plain timm `VisionTransformer` in pieces, without its head (DINO, DINOv2; the trunk of SigLIP)."""

    def __init__(self, trunk: Any) -> None:
        if type(trunk) is not timm.models.vision_transformer.VisionTransformer:
            raise _unsupported(f"a timm {type(trunk).__name__}", "it is no plain VisionTransformer")
        block = trunk.blocks[0]
        plain = type(block) is timm.models.vision_transformer.Block
        if not plain or not isinstance(block.attn, timm.layers.Attention) or block.attn.gate is not None:
            raise _unsupported("built of custom timm blocks", "their attention has further steps")
        self.trunk: Any = trunk
        self.patch_hw: tuple[int, int] = tuple(trunk.patch_embed.patch_size)
        self.trained_hw: tuple[int, int] = tuple(trunk.patch_embed.grid_size)
        self.num_prefix: int = trunk.num_prefix_tokens
        self.blocks: list[Block] = [_TimmBlock(block) for block in trunk.blocks]

    def blocks_on(self, hw: tuple[int, int]) -> list[Block]:
        """The blocks for a grid: the same for any, because positions are in the stream."""
        del hw
        return self.blocks

    def embed(self, pixels: Tensor, positions: PositionRule) -> tuple[Tensor, tuple[int, int]]:
        """See `Tower`."""
        grid = self.patches(pixels)
        return self.enter(grid, positions), (grid.shape[-2], grid.shape[-1])

    def patches(self, pixels: Tensor) -> Tensor:
        """See `Tower`."""
        embed = self.trunk.patch_embed
        grid = embed.proj(pixels)
        return embed.norm(grid.flatten(2).mT).mT.unflatten(-1, grid.shape[-2:])

    def enter(self, patches: Tensor, positions: PositionRule) -> Tensor:
        """See `Tower`."""
        trunk = self.trunk
        hw = (patches.shape[-2], patches.shape[-1])
        tokens = patches.flatten(2).mT
        prefix = [
            t.expand(tokens.shape[0], -1, -1) for t in (trunk.cls_token, trunk.reg_token) if t is not None
        ]
        embedded_prefix = 0 if trunk.no_embed_class else self.num_prefix
        embedding: Tensor | int = 0
        if trunk.pos_embed is not None:
            embedding = resample_positions(
                trunk.pos_embed[0], self.trained_hw, hw, positions, num_prefix=embedded_prefix
            )
        if trunk.no_embed_class:
            tokens = cat([*prefix, tokens + embedding], dim=1)
        else:
            tokens = cat([*prefix, tokens], dim=1) + embedding
        return trunk.norm_pre(tokens)

    def finish(self, tokens: Tensor) -> Tensor:
        """The final norm; a guide has no shared space to project into."""
        return self.trunk.norm(tokens)


class _TimmTower(TimmTrunk):
    """open_clip's `TimmModel` around a plain timm `VisionTransformer` (SigLIP, SigLIP 2).

    With an attention-pooling head (SigLIP) each patch goes through the head as if it were the only token
    there: its value, the head's projection and MLP. That is MaskCLIP's reading of attention pooling
    (arXiv 2112.01071, section 3.2) applied to the pooling head.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__(visual.trunk)
        pool = self.trunk.attn_pool
        if pool is not None and not isinstance(pool, timm.layers.AttentionPoolLatent):
            raise _unsupported(f"pooled by a {type(pool).__name__}", "its values cannot be read one by one")
        if pool is not None and pool.pos_embed is not None:
            raise _unsupported("pooled with positions of its own", "they belong to one grid size")
        self.visual = visual

    def finish(self, tokens: Tensor) -> Tensor:
        trunk = self.trunk
        tokens = super().finish(tokens)
        if trunk.attn_pool is not None:
            pool = trunk.attn_pool
            tokens = pool.proj(pool.kv(tokens).chunk(2, dim=-1)[1])
            if pool.mlp is not None:
                tokens = tokens + pool.mlp(pool.norm(tokens))
        return self.visual.head(trunk.head(trunk.fc_norm(tokens)))
