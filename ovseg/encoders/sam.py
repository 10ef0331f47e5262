"""Segment Anything: image embeddings, its last attention, masks from prompts.

The model is segment_anything's own module. Its encoder is stepped through block by block, because the
library holds heads x 4096 x 4096 attention weights in every global block (0.8 GB for ViT-B); here there are
a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import ImageEncoderViT, Sam
from segment_anything.modeling.image_encoder import get_rel_pos
from torch import Tensor, nn

from ovseg.errors import CheckpointError, ConfigError, ShapeError
from ovseg.resampling import Resampling, bilinear_matrix
from ovseg.sam_structures import GridAttention, SamImage, input_size
from ovseg.structures import PatchFeatures

__all__ = ["SamEncoder", "SamImage", "input_size"]

#: Prompts decoded at once, by device: each takes tens of megabytes.
PROMPTS_AT_ONCE = {"cpu": 8, "cuda": 32}


class SamEncoder(nn.Module):
    """SAM as an image encoder, a guide, and a decoder of prompts.

    The image encoder may run in half precision; prompts are encoded and decoded in float32.

    Source: Kirillov et al., arXiv 2304.02643; github.com/facebookresearch/segment-anything at dca509fe.

    Args:
        sam: segment_anything's model, of any size.
        name, weights_sha256: for messages and manifests.

    Raises:
        CheckpointError: the image encoder is not segment_anything's.
    """

    def __init__(self, sam: Sam, *, name: str = "", weights_sha256: str = "") -> None:
        super().__init__()
        if not isinstance(sam.image_encoder, ImageEncoderViT):
            raise CheckpointError(
                f"this SAM has a {type(sam.image_encoder).__name__} as its image encoder: use one of "
                f"segment_anything's own ViTs (ViT-B, ViT-L, ViT-H)"
            )
        self.sam = sam
        self.name = name
        self.weights_sha256 = weights_sha256

    @property
    def trunk(self) -> ImageEncoderViT:
        """The image encoder, which may be in half precision."""
        return self.sam.image_encoder

    @property
    def dtype(self) -> torch.dtype:
        """Of the image encoder's parameters."""
        return next(self.trunk.parameters()).dtype

    def cast(self, dtype: torch.dtype) -> None:
        """The image encoder in another precision; prompts stay float32."""
        self.trunk.to(dtype)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Let torch compile the blocks that attend within windows; the others come in chunks already."""
        for block in self.trunk.blocks:
            if block.window_size:
                block.compile(dynamic=True, backend=backend)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.sam.device

    @property
    def img_size(self) -> int:
        """Side of the padded input frame in pixels."""
        return self.trunk.img_size

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Pixels of a patch, in the input frame."""
        height, width = self.trunk.patch_embed.proj.stride
        return height, width

    def valid_hw(self, embedded: SamImage) -> tuple[int, int]:
        """How many cells of the padded grid the image fills; a remainder that fills no patch is dropped."""
        height, width = (side // patch for side, patch in zip(embedded.input_hw, self.patch_hw, strict=True))
        return max(height, 1), max(width, 1)

    @torch.no_grad()
    def embed(self, images: Sequence[UInt8[np.ndarray, "H W 3"]], *, attention: bool = False) -> SamImage:
        """Embeds RGB images of one size in one pass: long side to `img_size`, padded at right and bottom.

        Args:
            images: RGB bytes.
            attention: keep the last block's attention too.

        Raises:
            ShapeError: sizes differ, or there is no image.
            ConfigError: `attention` is asked of a model whose last block sees only windows.
        """
        sizes = {image.shape for image in images}
        if len(sizes) != 1:
            raise ShapeError(f"a batch needs images of one size, got {sorted(sizes)}: group them by size")
        image_hw = images[0].shape[:2]
        input_hw = input_size(image_hw, self.img_size)
        resized = [
            np.asarray(Image.fromarray(image).resize(input_hw[::-1], Image.Resampling.BILINEAR))
            for image in images
        ]
        pixels = torch.from_numpy(np.stack(resized)).to(self.device).permute(0, 3, 1, 2).float()
        embedding, last = self._encode(self.sam.preprocess(pixels), attention=attention)
        return SamImage(embedding, input_hw, image_hw, last)

    @torch.no_grad()
    def forward(self, image: Float[Tensor, "B 3 H W"]) -> PatchFeatures:
        """As a guide: the whole picture stretched over the input frame, the neck's output.

        Args:
            image: RGB in [0, 1], any size.
        """
        size = (self.img_size, self.img_size)
        pixels = F.interpolate(image * 255, size=size, mode="bilinear", align_corners=False)
        embedding, _ = self._encode(self.sam.preprocess(pixels), attention=False)
        prefix = embedding.new_empty(len(image), 0, embedding.shape[1])
        return PatchFeatures(embedding, prefix, (image.shape[-2], image.shape[-1]))

    @torch.no_grad()
    def decode(
        self,
        embedded: SamImage,
        index: int,
        *,
        points: Float[Tensor, "N P 2"] | None = None,
        point_labels: Int[Tensor, "N P"] | None = None,
        boxes: Float[Tensor, "N 4"] | None = None,
        masks: Float[Tensor, "L 1 s s"] | None = None,
        multimask: bool = False,
        as_published: bool = False,
    ) -> tuple[Float[Tensor, "N M s s"], Float[Tensor, "N M"]]:
        """Masks of one image for N prompts: `(low-resolution logits, predicted IoU)`, M = 1 or 3 each.

        Args:
            embedded: the images.
            index: which of them.
            points: `(x, y)` in pixels of the input frame.
            point_labels: 1 for foreground, 0 for background; all foreground by default.
            boxes: `(x0, y0, x1, y1)` in pixels of the input frame.
            masks: logits, one for each prompt or one for all.
            multimask: three masks for each prompt.
            as_published: give the mask to the prompt encoder without its batch axis, as Trident's code does;
                SAM's channel norm then runs over the mask's height.
        """
        if points is None and boxes is None and masks is None:
            raise ConfigError("SAM needs a prompt: give points, boxes or masks")
        count = len(next(each for each in (points, boxes, masks) if each is not None))
        if points is not None and point_labels is None:
            point_labels = torch.ones(points.shape[:2], dtype=torch.int64)
        encoder, at_once = self.sam.prompt_encoder, PROMPTS_AT_ONCE.get(self.device.type, 8)
        shared = encoder.no_mask_embed.weight[..., None, None]
        if masks is not None:
            masks = masks.to(self.device)
            shared = encoder.mask_downscaling(masks[0] if as_published else masks)
        positions, image = encoder.get_dense_pe(), embedded.embedding[index : index + 1].float()
        low_res, quality = [], []
        for start in range(0, count, at_once):
            part = slice(start, start + at_once)
            sparse, _ = encoder(
                points=None
                if points is None or point_labels is None
                else (points[part].to(self.device), point_labels[part].to(self.device)),
                boxes=None if boxes is None else boxes[part].to(self.device),
                masks=None,
            )
            if points is None and boxes is None:
                sparse = sparse.expand(min(at_once, count - start), -1, -1)
            one_each = masks is not None and len(masks) == count and not as_published
            decoded = self.sam.mask_decoder(
                image_embeddings=image,
                image_pe=positions,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=shared[part] if one_each else shared,
                multimask_output=multimask,
            )
            low_res.append(decoded[0])
            quality.append(decoded[1])
        return torch.cat(low_res), torch.cat(quality)

    def upscale(
        self,
        low_res: Float[Tensor, "N M s s"],
        embedded: SamImage,
        size_hw: tuple[int, int] | None = None,
    ) -> Float[Tensor, "N M H W"]:
        """Logits as pictures of the image: padding cropped off, bilinear as in SAM's postprocessing.

        Args:
            low_res: as `decode` gives them.
            embedded: the image.
            size_hw: by default the size of the image as it was given.
        """
        axes = (
            bilinear_matrix(cells, self.img_size)[:side]
            for cells, side in zip(low_res.shape[-2:], embedded.input_hw, strict=True)
        )
        resampling = Resampling(*axes).then(embedded.image_hw)
        return resampling.then(size_hw or embedded.image_hw).to(low_res.device).apply(low_res)

    def automatic_masks(self, image: UInt8[np.ndarray, "H W 3"], **options: Any) -> list[dict[str, Any]]:
        """Masks of everything in an image.

        Args:
            image: RGB bytes.
            options: of segment_anything's `SamAutomaticMaskGenerator`.

        Returns:
            Its records: `segmentation` (H, W), `area`, `bbox` xywh, `predicted_iou`, `stability_score` ...
        """
        frugal = Sam(
            _Frugal(self),
            self.sam.prompt_encoder,
            self.sam.mask_decoder,
            pixel_mean=self.sam.pixel_mean.flatten().tolist(),
            pixel_std=self.sam.pixel_std.flatten().tolist(),
        ).to(self.device)
        return SamAutomaticMaskGenerator(frugal, **options).generate(image)

    def _encode(
        self, pixels: Float[Tensor, "B 3 s s"], *, attention: bool
    ) -> tuple[Float[Tensor, "B C g g"], GridAttention | None]:
        """Normalised, padded pixels to the neck's output; the last block's attention, if asked for."""
        trunk: Any = self.trunk
        if attention and trunk.blocks[-1].window_size:
            raise ConfigError(
                "the last block of this SAM attends within windows only: Trident needs one that sees the "
                "whole image, as in ViT-B, ViT-L and ViT-H"
            )
        tokens = trunk.patch_embed(pixels.to(self.dtype))
        if trunk.pos_embed is not None:
            tokens = tokens + trunk.pos_embed
        opened = None
        for block in trunk.blocks:
            if block.window_size:
                tokens = block(tokens)
                continue
            opened = open_block(block, tokens)
            mixed = opened.mix().transpose(1, 2).flatten(2).unflatten(1, opened.hw)
            tokens = tokens + block.attn.proj(mixed)
            tokens = tokens + block.mlp(block.norm2(tokens))
        return trunk.neck(tokens.permute(0, 3, 1, 2)), opened if attention else None


def open_block(block: Any, tokens: Float[Tensor, "B h w C"]) -> GridAttention:
    """The attention of a global block of segment_anything's encoder."""
    attention, hw = block.attn, (tokens.shape[1], tokens.shape[2])
    qkv = attention.qkv(block.norm1(tokens)).flatten(1, 2).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    if not attention.use_rel_pos:
        return GridAttention(q, k, v, None, None, hw)
    grid = q.unflatten(2, hw)
    rows = torch.einsum("bgyxd,ykd->bgyxk", grid, get_rel_pos(hw[0], hw[0], attention.rel_pos_h))
    cols = torch.einsum("bgyxd,xkd->bgyxk", grid, get_rel_pos(hw[1], hw[1], attention.rel_pos_w))
    return GridAttention(q, k, v, rows.flatten(2, 3), cols.flatten(2, 3), hw)


class _Frugal(nn.Module):
    """The encoder as segment_anything's own classes call it."""

    def __init__(self, encoder: SamEncoder) -> None:
        super().__init__()
        self.img_size = encoder.img_size
        self.encode = encoder._encode

    def forward(self, pixels: Float[Tensor, "B 3 s s"]) -> Float[Tensor, "B C g g"]:
        return self.encode(pixels, attention=False)[0].float()
