"""CLIP's image tower, opened at its last block.

The tower is open_clip's own module with its own parameters. It is stepped through block by block; what is
relied on is the names of submodules and parameters, which checkpoints freeze.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.encoders.clip_loading import LoadedClip
from ovseg.encoders.positions import PositionRule
from ovseg.encoders.token_merging import TokenMerging, TokenStream
from ovseg.encoders.towers import Tower, wrap_tower
from ovseg.errors import ConfigError
from ovseg.structures import OpenBlock, PatchFeatures
from ovseg.windows import check_divisible

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
DEFAULT_POSITIONS = PositionRule()


class ClipEncoder(nn.Module):
    """A CLIP-like image tower as a dense encoder, in the shared image-text space.

    Every method's last block is the same three steps: `open` runs all blocks but the last and hands out
    its q, k, v and residual; the caller mixes the values; `close` finishes the block and projects.

    Args:
        visual: an open_clip `VisionTransformer`, or its `TimmModel` with a plain timm ViT trunk.
        mean, std: RGB statistics of the training images, for values in [0, 1].
        name: how the weights are called, for messages and manifests.
        weights_sha256: hash of the weights file, for manifests.
        merging: lets the tower merge alike tokens on their way to the last block, which `open` finds
            un-merged: faster, and a little less accurate. Methods that step through inner blocks by
            themselves do not ask.

    Raises:
        CheckpointError: the tower has no block that could be opened (ResNets, attention-pooled CoCa ...).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        visual: nn.Module,
        *,
        mean: Sequence[float] = OPENAI_MEAN,
        std: Sequence[float] = OPENAI_STD,
        name: str = "",
        weights_sha256: str = "",
        merging: TokenMerging | None = None,
    ) -> None:
        super().__init__()
        self.visual = visual
        self.merging = merging
        self.name = name
        self.weights_sha256 = weights_sha256
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        wrap_tower(visual)  # fail now, with a reason, and not at the first image

    @classmethod
    def of(cls, loaded: LoadedClip, **options: Any) -> ClipEncoder:
        """The image tower of a CLIP; `options` are of the constructor."""
        given = {each: getattr(loaded, each) for each in ("mean", "std", "name", "weights_sha256")}
        return cls(loaded.model.visual, **given | options)

    @property
    def tower(self) -> Tower:
        """The tower's pieces under common names."""
        return wrap_tower(self.visual)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Pixels of a patch."""
        return self.tower.patch_hw

    def cast(self, dtype: torch.dtype) -> None:
        """The tower in another precision; statistics stay float32."""
        self.visual.to(dtype)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Let torch compile the transformer blocks."""
        for block in self.tower.blocks:
            block.compile(backend)

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.visual.parameters()).dtype

    def embed(
        self, image: Float[Tensor, "B 3 H W"], positions: PositionRule = DEFAULT_POSITIONS
    ) -> tuple[Float[Tensor, "B N C"], tuple[int, int]]:
        """The token stream that enters the first block, and the patch grid.

        Args:
            image: RGB in [0, 1]; H and W multiples of the patch.
            positions: how position embeddings are resampled to the grid.

        Raises:
            ShapeError: H or W is no multiple of the patch; the message states the nearest that is.
        """
        check_divisible((image.shape[-2], image.shape[-1]), self.patch_hw)
        pixels = ((image - self.mean) / self.std).to(self.dtype)
        return self.tower.embed(pixels, positions)

    def open(
        self,
        image: Float[Tensor, "B 3 H W"],
        taps: Iterable[int] = (),
        positions: PositionRule = DEFAULT_POSITIONS,
        *,
        ffn_taps: Iterable[int] = (),
    ) -> OpenBlock:
        """Runs all blocks but the last and opens that one.

        Args:
            image: RGB in [0, 1]; H and W multiples of the patch.
            taps: blocks (counted from 0, negative from the end) whose outputs are wanted too.
            positions: how position embeddings are resampled to the grid.
            ffn_taps: blocks whose normalised FFN inputs are wanted too.

        Raises:
            ConfigError: a tap names no block before the last.
        """
        tower = self.tower
        depth = len(tower.blocks)
        taps, ffn_taps = tuple(taps), tuple(ffn_taps)
        for tap in (*taps, *ffn_taps):
            if not -depth <= tap < depth or tap % depth == depth - 1:
                raise ConfigError(
                    f"no tap at block {tap}: the tower has {depth} blocks and the last is the one that is "
                    f"opened; use 0..{depth - 2}, or {-depth}..-2 from the end"
                )
        tokens, hw = self.embed(image, positions)
        stream = TokenStream(tokens, self.merging, depth=depth, num_prefix=tower.num_prefix)
        tapped: dict[int, Tensor] = {}
        ffn_tapped: dict[int, Tensor] = {}
        for index, block in enumerate(tower.blocks[:-1]):
            inner = [tap for tap in ffn_taps if tap % depth == index]
            normalised = stream.run(block, index, ffn_input=bool(inner))
            ffn_tapped |= {tap: normalised for tap in inner if normalised is not None}
            tapped |= {tap: stream.full for tap in taps if tap % depth == index}
        tokens = stream.full
        q, k, v = tower.blocks[-1].split(tokens)
        image_hw = (image.shape[-2], image.shape[-1])
        return OpenBlock(q, k, v, tokens, hw, tower.num_prefix, image_hw, tapped, ffn_tapped)

    def close(
        self,
        values: Float[Tensor, "B G N d"],
        *,
        hw: tuple[int, int],
        num_prefix: int,
        image_hw: tuple[int, int],
        residual: Float[Tensor, "B N C"] | None = None,
    ) -> PatchFeatures:
        """Finishes the opened block: out-projection, optionally residual and FFN, final norm, projection.

        Args:
            values: mixed values of the last block.
            hw: their grid (a guide's grid may differ from the tower's own).
            num_prefix: prefix tokens among them.
            image_hw: carried along.
            residual: the block's input; None drops both the residual and the FFN (ClearCLIP).
        """
        tower = self.tower
        last = tower.blocks[-1]
        tokens = last.project(values)
        if residual is not None:
            tokens = last.feed_forward(residual + tokens)
        return self._features(tower.finish(tokens), hw, num_prefix, image_hw)

    def forward(
        self, image: Float[Tensor, "B 3 H W"], positions: PositionRule = DEFAULT_POSITIONS
    ) -> PatchFeatures:
        """Dense tokens of the unmodified tower: every block as trained, projected to the shared space."""
        tower = self.tower
        tokens, hw = self.embed(image, positions)
        stream = TokenStream(tokens, self.merging, depth=len(tower.blocks), num_prefix=tower.num_prefix)
        for index, block in enumerate(tower.blocks[:-1]):
            stream.run(block, index)
        tokens = tower.blocks[-1](stream.full)
        image_hw = (image.shape[-2], image.shape[-1])
        return self._features(tower.finish(tokens), hw, tower.num_prefix, image_hw)

    @staticmethod
    def _features(
        tokens: Float[Tensor, "B N D"], hw: tuple[int, int], num_prefix: int, image_hw: tuple[int, int]
    ) -> PatchFeatures:
        prefix, patches = tokens[:, :num_prefix], tokens[:, num_prefix:]
        return PatchFeatures(patches.mT.unflatten(-1, hw), prefix, image_hw)
