"""A frozen image tower with tokens of its own at every block: deep visual prompt tuning.

Source: Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119, section 3.2 (deep); as CLIP-EBC uses
it, github.com/Yiming-M/CLIP-EBC at b52a5944, models/clip/model.py.
"""

from __future__ import annotations

import math
from typing import Any

import open_clip.transformer
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.encoders.clip import DEFAULT_POSITIONS, ClipEncoder
from ovseg.errors import CheckpointError, ConfigError


class PromptedEncoder(nn.Module):
    """CLIP's patch tokens before the projection, steered by learnt tokens.

    Before every block that block's prompts are put between the class token and the patches; behind it they
    are taken out again. The tower itself stays as it is.

    Args:
        encoder: a CLIP tower of open_clip's own kind; its parameters are frozen.
        num_prompts: tokens at each block; with 0 the patches are the tower's own.

    Raises:
        CheckpointError: the tower has no final norm of its own before the projection.
    """

    def __init__(self, encoder: ClipEncoder, *, num_prompts: int = 32) -> None:
        super().__init__()
        if not isinstance(encoder.visual, open_clip.transformer.VisionTransformer):
            raise CheckpointError(
                f"prompts go into open_clip's own VisionTransformer, not into a "
                f"{type(encoder.visual).__name__}: use a ViT of CLIP such as clip_vitb16_openai"
            )
        if num_prompts < 0:
            raise ConfigError(f"num_prompts must be 0 or more, got {num_prompts}")
        self.encoder = encoder.requires_grad_(False)
        self.prompts: nn.Parameter | None = None
        if not num_prompts:
            return
        self.prompts = nn.Parameter(torch.empty(len(encoder.tower.blocks), num_prompts, self.channels))
        # Xavier's bound as VPT takes it: from the patch's fan-in.
        bound = math.sqrt(6 / (3 * encoder.patch_hw[0] + self.channels))
        nn.init.uniform_(self.prompts, -bound, bound)

    @property
    def channels(self) -> int:
        """Width of the tower."""
        visual: Any = self.encoder.visual
        return visual.conv1.out_channels

    @property
    def patch_px(self) -> int:
        """Pixels of a feature cell, a side."""
        return self.encoder.patch_hw[0]

    @property
    def mean(self) -> Tensor:
        """Of the images, by channel."""
        return self.encoder.mean

    @property
    def std(self) -> Tensor:
        """Of the images, by channel."""
        return self.encoder.std

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """Patch tokens after the final norm.

        Args:
            image: RGB in [0, 1]; H and W multiples of the patch.
        """
        tower = self.encoder.tower
        tokens, hw = self.encoder.embed(image, DEFAULT_POSITIONS)
        first = tower.num_prefix
        for index, block in enumerate(tower.blocks):
            if self.prompts is None:
                tokens = block(tokens)
                continue
            prompts = self.prompts[index].to(tokens.dtype).expand(len(tokens), -1, -1)
            tokens = block(torch.cat([tokens[:, :first], prompts, tokens[:, first:]], dim=1))
            tokens = torch.cat([tokens[:, :first], tokens[:, first + prompts.shape[1] :]], dim=1)
        visual: Any = self.encoder.visual
        patches = visual.ln_post(tokens[:, tower.num_prefix :])
        return patches.mT.unflatten(-1, hw)
