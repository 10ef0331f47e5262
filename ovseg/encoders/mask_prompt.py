"""Mask prompt tuning: CLIP learns what to make of the patches of a crop that show nothing of the region."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule, resample_positions
from ovseg.errors import CheckpointError, ConfigError, ShapeError
from ovseg.windows import check_divisible

#: Prompts are learned for one grid; on another they are resampled like positions, linearly.
POSITIONS = PositionRule("bilinear")


class MaskPromptedClip(nn.Module):
    """CLIP's embedding of a region, from its crop and where the region is in it.

    A patch without a single pixel of the region is replaced by a learned vector of its place: first before
    class token and positions are added, then again after each of the first `depth - 1` blocks. What is
    painted over in a crop is thereby never read.

    Source: mask prompt tuning, Liang et al., arXiv 2210.04150, section 3.3; `modeling/clip_adapter` of
    github.com/facebookresearch/ov-seg at 36f49d49 (depth 3, prompts start at zero).

    Args:
        encoder: the image tower, with a class token; its modules are stepped through, not copied.
        depth: how often patches are replaced, 1 to the number of blocks.
        crop_px: side of the crops that the prompts are learned for; None is what the tower was trained with.

    Raises:
        ConfigError: no such depth, or the tower has no class token.
    """

    def __init__(self, encoder: ClipEncoder, *, depth: int = 3, crop_px: int | None = None) -> None:
        super().__init__()
        tower = encoder.tower
        if not 1 <= depth <= len(tower.blocks):
            raise ConfigError(f"depth must be 1 to {len(tower.blocks)}, the tower's blocks, got {depth}")
        if not tower.num_prefix:
            raise ConfigError(
                f"mask prompts ask for the class token and '{encoder.name}' has none (SigLIP): use a ViT of "
                f"OpenAI, LAION, MetaCLIP or DataComp"
            )
        self.encoder = encoder
        own_hw = tower.trained_hw[0] * tower.patch_hw[0], tower.trained_hw[1] * tower.patch_hw[1]
        self.crop_hw = own_hw if crop_px is None else (crop_px, crop_px)
        check_divisible(self.crop_hw, tower.patch_hw)
        with torch.no_grad():
            width = tower.patches(encoder.mean.new_zeros(1, 3, *tower.patch_hw, dtype=encoder.dtype)).shape[1]
        cells = self._trained_hw[0] * self._trained_hw[1]
        self.prompts = nn.Parameter(torch.zeros(depth, cells, width))

    @property
    def depth(self) -> int:
        """How often patches are replaced."""
        return len(self.prompts)

    @property
    def embed_dim(self) -> int:
        """Dimensions of the shared space."""
        return self.encoder.tower.finish(self.prompts.detach()[:1, :1].to(self.encoder.dtype)).shape[-1]

    @property
    def _trained_hw(self) -> tuple[int, int]:
        patch_hw = self.encoder.patch_hw
        return self.crop_hw[0] // patch_hw[0], self.crop_hw[1] // patch_hw[1]

    def load_prompts(self, state: Mapping[str, Tensor]) -> None:
        """Takes over learned prompts, ours or the published `mask_embedding`.

        Raises:
            CheckpointError: there are none, or they are of another tower.
        """
        found = [
            value for name, value in state.items() if name.split(".")[-1] in ("prompts", "mask_embedding")
        ]
        if len(found) != 1 or found[0].shape[1:] != self.prompts.shape[1:]:
            shapes = [tuple(each.shape) for each in found] or "none"
            raise CheckpointError(
                f"expected mask prompts (depth, {', '.join(map(str, self.prompts.shape[1:]))}) for "
                f"'{self.encoder.name}', found {shapes}"
            )
        self.prompts = nn.Parameter(found[0].to(self.prompts).clone(), self.prompts.requires_grad)

    def forward(
        self, image: Float[Tensor, "B 3 H W"], mask: Bool[Tensor, "B H W"] | None = None
    ) -> Float[Tensor, "B D"]:
        """Embeddings in the shared image-text space, not normalised.

        Args:
            image: crops, RGB in [0, 1]; H and W multiples of the patch.
            mask: where the region is; None takes every patch, which is CLIP as it was.

        Raises:
            ShapeError: H or W is no multiple of the patch, or a mask is of another size.
        """
        encoder = self.encoder
        tower = encoder.tower
        check_divisible((image.shape[-2], image.shape[-1]), tower.patch_hw)
        grid = tower.patches(((image - encoder.mean) / encoder.std).to(encoder.dtype))
        if mask is None:
            tokens = tower.enter(grid, PositionRule())
            for block in tower.blocks:
                tokens = block(tokens)
            return tower.finish(tokens[:, :1])[:, 0]
        if mask.shape[-2:] != image.shape[-2:]:
            raise ShapeError(
                f"masks are {tuple(mask.shape[-2:])} and crops {tuple(image.shape[-2:])} (HxW): equal sizes"
            )
        hw = (grid.shape[-2], grid.shape[-1])
        kept = patches_shown(mask, tower.patch_hw)
        prompts = [
            resample_positions(each, self._trained_hw, hw, POSITIONS, num_prefix=0).to(grid.dtype)
            for each in self.prompts
        ]
        tokens = tower.enter(
            torch.where(kept[:, None], grid, prompts[0].mT.unflatten(-1, hw)), PositionRule()
        )
        prefix = tower.num_prefix
        kept = F.pad(kept.flatten(1), (prefix, 0), value=True)[..., None]
        for index, block in enumerate(tower.blocks, 1):
            tokens = block(tokens)
            if index < self.depth:
                tokens = torch.where(kept, tokens, F.pad(prompts[index], (0, 0, prefix, 0)))
        return tower.finish(tokens[:, :1])[:, 0]


def patches_shown(mask: Bool[Tensor, "B H W"], patch_hw: tuple[int, int]) -> Bool[Tensor, "B h w"]:
    """Which patches hold any pixel of the region: the mean over a patch, rounded up."""
    return F.max_pool2d(mask[:, None].float(), patch_hw)[:, 0] > 0
