"""DenseCLIP's context decoder: words (or learned queries) look at the image.

Source: Rao et al., arXiv 2112.01518, section 3.3 and figure 4; github.com/raoyongming/DenseCLIP at 5eda47f0,
segmentation/denseclip/models.py (ContextDecoder, TransformerDecoderLayer, Attention). Parameters are named as
there. Deviations: none.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.errors import ConfigError


class Attention(nn.Module):
    """Multi-head attention whose query, key and value projections have no bias."""

    def __init__(self, width: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(
        self, query: Float[Tensor, "B K C"], memory: Float[Tensor, "B N C"]
    ) -> Float[Tensor, "B K C"]:
        """Each query's mixture of the memory."""
        q, k, v = (
            project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, tokens in ((self.q_proj, query), (self.k_proj, memory), (self.v_proj, memory))
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(mixed))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the memory (which is not normed here), MLP; each pre-norm and residual."""

    def __init__(self, width: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, dropout=dropout)
        self.cross_attn = Attention(width, heads, dropout=dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )

    def forward(self, x: Float[Tensor, "B K C"], memory: Float[Tensor, "B N C"]) -> Float[Tensor, "B K C"]:
        """The queries, a layer on."""
        normed = self.norm1(x)
        x = x + self.self_attn(normed, normed)
        x = x + self.cross_attn(self.norm2(x), memory)
        return x + self.dropout(self.mlp(self.norm3(x)))


class ContextDecoder(nn.Module):
    """Queries in, what the image adds to them out.

    Args:
        query_dim: channels of queries and of answers: D for words (post-model prompting), the text tower's
            width for learned contexts (pre-model prompting).
        visual_dim: channels of the memory, D.
        width, heads, layers, dropout: of the decoder.

    Raises:
        ConfigError: the width is no multiple of the heads.
    """

    def __init__(
        self,
        query_dim: int,
        visual_dim: int,
        *,
        width: int = 256,
        heads: int = 4,
        layers: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"a context decoder of width {width} cannot have {heads} heads")
        self.memory_proj = nn.Sequential(
            nn.LayerNorm(visual_dim), nn.Linear(visual_dim, width), nn.LayerNorm(width)
        )
        self.text_proj = nn.Sequential(nn.LayerNorm(query_dim), nn.Linear(query_dim, width))
        self.decoder = nn.ModuleList([DecoderLayer(width, heads, dropout=dropout) for _ in range(layers)])
        self.out_proj = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, query_dim))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, queries: Float[Tensor, "B K C"], visual: Float[Tensor, "B N D"]
    ) -> Float[Tensor, "B K C"]:
        """What the image says about each query."""
        memory = self.memory_proj(visual)
        x = self.text_proj(queries)
        for layer in self.decoder:
            x = layer(x, memory)
        return self.out_proj(x)
