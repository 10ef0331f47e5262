"""CorrCLIP v1: patches correlate within regions, and regions get class tokens and a vote of their own.

Three branches meet after the final norm, `main + spatial_weight * spatial + semantic_weight * semantic`:
main is the last block's attention replaced by DINO's correlation within regions, without residual and FFN;
spatial is the same for the mean of inner blocks' outputs; semantic is one copy of the class token for each
region, which runs through all blocks and looks at its region alone. At the end every region is set to its
most frequent class.

Source: Zhang et al., arXiv 2411.10086, section 3; github.com/zdk258/CorrCLIP at 103bc182, CorrCLIPv1.
Deviations: see `ovseg.correlation.regions` on unsegmented and padded patches; any number of images at once.
SAM's mask generator gives three masks for a point, SAM 2's in the code one. `as_published=True`: as in the
code, also position embeddings unresampled when the count agrees.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ovseg.correlation.regions import PADDING, PUBLISHED_PADDING, merge_regions, region_softmax
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.encoders.towers import Block
from ovseg.errors import ConfigError
from ovseg.refine.region_voting import RegionVoting
from ovseg.regions import regions_of, resize_regions
from ovseg.scorer import Scorer
from ovseg.structures import Affinity, DenseFeatures, OpenBlock, PatchFeatures, Pictures
from ovseg.windows import WindowPlan, whole_patches


def published_spatial_blocks(depth: int) -> int:
    """How many blocks the spatial branch averages in a tower of so many: 5 of 12, 12 of 24, 28 of 32."""
    return max({12: 5, 24: 12}.get(depth, depth - 4), 1)


class CorrClipScorer(Scorer):
    """The three branches over windows; regions come with the images, or from SAM.

    Args:
        encoder: the image tower, with a class token and at least 3 blocks.
        guide: says which patches are alike.
        sam: finds regions where images came without; None: they must come with some.
        sharpness: of the softmax (1 / tau in the paper).
        merge_within: see `merge_regions`.
        spatial_weight, semantic_weight: of the branches (alpha and beta in the paper).
        spatial_blocks: how many blocks before the last two the spatial branch averages.
        as_published: see the module.
        options: of `Scorer`.

    Raises:
        ConfigError: the tower cannot serve.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        guide: nn.Module,
        sam: nn.Module | None,
        *,
        sharpness: float,
        merge_within: float,
        spatial_weight: float,
        semantic_weight: float,
        spatial_blocks: int | None,
        as_published: bool,
        **options: Any,
    ) -> None:
        super().__init__(encoder, guide=guide, **options)
        tower = encoder.tower
        depth = len(tower.blocks)
        if not tower.num_prefix or depth < 3:
            raise ConfigError(
                f"CorrCLIP needs a tower with a class token and at least 3 blocks, this one has "
                f"{tower.num_prefix} class tokens and {depth} blocks: use a CLIP ViT"
            )
        count = published_spatial_blocks(depth) if spatial_blocks is None else spatial_blocks
        if not 1 <= count <= depth - 2:
            raise ConfigError(f"spatial_blocks must be 1 to {depth - 2} for {depth} blocks, got {count}")
        self.sam: Any = sam
        self.sharpness = sharpness
        self.merge_within = merge_within
        self.spatial_weight = spatial_weight
        self.semantic_weight = semantic_weight
        self.spatial = range(depth - 2 - count, depth - 2)
        self.as_published = as_published

    @torch.no_grad()
    def encode(self, pictures: Pictures, output_hw: tuple[int, int] | None = None) -> DenseFeatures:
        """See `Scorer`; the pictures that the features carry have the regions that were used."""
        pictures = replace(pictures, regions=regions_of(pictures, self.sam))
        image = pictures.image
        image_hw = (image.shape[-2], image.shape[-1])
        windows = self.windows.windows(image_hw, self.encoder.patch_hw)
        ids = torch.from_numpy(np.stack(pictures.regions)).to(image.device)
        padding = PUBLISHED_PADDING if self.as_published else PADDING
        regions = windows.cut_regions(resize_regions(ids, image_hw), padding)
        at_once = self.windows.max_batch
        pieces = zip(
            windows.cut(image, self.encoder.mean).split(at_once), regions.split(at_once), strict=True
        )
        return self.assemble(pictures, windows, [self.features(*piece) for piece in pieces], output_hw)

    def features(
        self, image: Float[Tensor, "B 3 H W"], regions: Int[Tensor, "B H W"] | None = None
    ) -> PatchFeatures:
        """Patch features of one window each on the guide's grid; without regions all is unsegmented."""
        tower = self.encoder.tower
        guide = self.guide(whole_patches(image, self.guide.patch_hw)).grid.float()
        guide_hw = (guide.shape[-2], guide.shape[-1])
        if regions is None:
            regions = torch.zeros_like(image[:, 0], dtype=torch.long)
        unit = F.normalize(guide.flatten(2), dim=1).mT
        merged = torch.stack(
            [
                merge_regions(ids, each, within=self.merge_within, as_published=self.as_published)
                for ids, each in zip(resize_regions(regions, guide_hw).flatten(1), unit, strict=True)
            ]
        )
        matrix = region_softmax(
            unit @ unit.mT, merged, sharpness=self.sharpness, as_published=self.as_published
        )
        affinity = Affinity(guide_hw, 0, matrix=matrix[:, None])

        pixels = whole_patches(image, self.encoder.patch_hw)
        stream, hw = self.encoder.embed(pixels, self.positions)
        index = _numbered(resize_regions(merged.unflatten(1, guide_hw), hw))
        main, spatial, copies = self._branches(stream, index.flatten(1))
        image_hw = (pixels.shape[-2], pixels.shape[-1])

        def mixed(tokens: Tensor) -> Tensor:
            """The last block's attention with the regions' affinity, in the shared space."""
            block = tower.blocks[-1]
            opened = OpenBlock(*block.split(tokens), tokens, hw, tower.num_prefix, image_hw)
            return tower.finish(block.project(affinity.mix(opened.values_on(guide_hw, 0))))

        where = resize_regions(index, guide_hw).flatten(1)
        rows = torch.arange(len(where), device=where.device)[:, None]
        semantic = tower.finish(copies)[rows, where]
        tokens = mixed(main) + self.spatial_weight * mixed(spatial) + self.semantic_weight * semantic
        return PatchFeatures(tokens.mT.unflatten(-1, guide_hw), tokens[:, :0], image_hw)

    def _branches(
        self, tokens: Float[Tensor, "B N C"], index: Int[Tensor, "B n"]
    ) -> tuple[Float[Tensor, "B N C"], Float[Tensor, "B N C"], Float[Tensor, "B R C"]]:
        """The input of the last block, the mean of inner blocks' outputs, each region's class token."""
        tower = self.encoder.tower
        members = F.one_hot(index).bool().mT
        allowed = F.pad(members, (tower.num_prefix, 0), value=True)[:, None]  # (B, 1, R, N)
        copies = tokens[:, :1].expand(-1, members.shape[1], -1)
        inner = []
        for number, block in enumerate(tower.blocks[:-1]):
            copies, tokens = _step(block, copies, tokens, allowed)
            if number in self.spatial:
                inner.append(tokens)
        copies, _ = _step(tower.blocks[-1], copies, tokens, allowed)
        return tokens, torch.stack(inner).mean(dim=0), copies


def _step(
    block: Block,
    copies: Float[Tensor, "B R C"],
    tokens: Float[Tensor, "B N C"],
    allowed: Bool[Tensor, "B 1 R N"],
) -> tuple[Float[Tensor, "B R C"], Float[Tensor, "B N C"]]:
    """A block as trained; copies see the tokens that they may, and are seen by none."""
    count = copies.shape[1]
    both = torch.cat([copies, tokens], dim=1)
    q, k, v = block.split(both)
    k, v = k[:, :, count:], v[:, :, count:]
    values = [
        F.scaled_dot_product_attention(q[:, :, :count], k, v, attn_mask=allowed),
        F.scaled_dot_product_attention(q[:, :, count:], k, v),
    ]
    both = block.feed_forward(both + block.project(torch.cat(values, dim=2)))
    return both[:, :count], both[:, count:]


def _numbered(ids: Int[Tensor, "B h w"]) -> Int[Tensor, "B h w"]:
    """Each image's ids as 0, 1, 2 ... in order."""
    return torch.stack([each.unique(return_inverse=True)[1] for each in ids])


def corrclip(
    encoder: ClipEncoder,
    guide: nn.Module,
    sam: nn.Module | None = None,
    *,
    short_side: int | None = 336,
    crop: int | None = 336,
    stride: int | None = 112,
    temperature: float = 40.0,
    sharpness: float = 4.0,
    merge_within: float = 0.2,
    spatial_weight: float = 1.0,
    semantic_weight: float = 0.5,
    spatial_blocks: int | None = None,
    voting: bool = True,
    max_batch: int = 8,
    as_published: bool = False,
) -> Scorer:
    """CorrCLIP over sliding windows.

    Args:
        encoder: the image tower.
        guide: DINO, whose last queries and keys are added; any other guide's features are taken as they are.
        sam: finds regions where images come without; None: they must come with some.
        short_side: resize to this first (448 for ADE20K and Cityscapes); None keeps the image's size.
        crop: window side in pixels (224 for Cityscapes); None takes the whole image at once.
        stride: step between windows.
        temperature: logit scale.
        sharpness: of the correlation's softmax.
        merge_within: regions are merged whose mean features' cosine is so near the largest one.
        spatial_weight: of the branch of inner blocks.
        semantic_weight: of the branch of region tokens.
        spatial_blocks: how many inner blocks; None is the code's choice for the tower's depth.
        voting: set each region to its most frequent class at the end.
        max_batch: windows at once.
        as_published: see above.
    """
    return CorrClipScorer(
        encoder,
        guide.with_kind("qk") if isinstance(guide, DinoEncoder) else guide,
        sam,
        sharpness=sharpness,
        merge_within=merge_within,
        spatial_weight=spatial_weight,
        semantic_weight=semantic_weight,
        spatial_blocks=spatial_blocks,
        as_published=as_published,
        windows=WindowPlan(crop, stride, fit="pad", multiple=56, max_batch=max_batch),
        positions=PositionRule(as_published=as_published),
        short_side=short_side,
        temperature=temperature,
        refine=[RegionVoting(as_published=as_published)] if voting else [],
    )
