"""A small random SAM that tests share."""

from __future__ import annotations

from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from ovseg.encoders.sam import SamEncoder


def tiny_sam(
    *, img_size: int = 64, patch: int = 8, rel_pos: bool = True, global_blocks: tuple[int, ...] = (1, 2)
) -> SamEncoder:
    """Three blocks, some of them global, random weights large enough that attention matters."""
    cells, channels = img_size // patch, 16
    sam = Sam(
        ImageEncoderViT(
            img_size=img_size,
            patch_size=patch,
            embed_dim=32,
            depth=3,
            num_heads=2,
            mlp_ratio=2.0,
            out_chans=channels,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=rel_pos,
            window_size=3,
            global_attn_indexes=global_blocks,
        ),
        PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(cells, cells),
            input_image_size=(img_size, img_size),
            mask_in_chans=8,
        ),
        MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=channels, mlp_dim=32, num_heads=2),
            transformer_dim=channels,
            iou_head_depth=2,
            iou_head_hidden_dim=16,
        ),
        [123.675, 116.28, 103.53],
        [58.395, 57.12, 57.375],
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in [*sam.parameters(), sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix]:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.25)
    return SamEncoder(sam).eval()
