"""DINO as a guide: it knows which patches belong together, and not what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import timm.models.eva
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.encoders.eva import EvaTrunk
from ovseg.encoders.positions import PositionRule
from ovseg.encoders.token_merging import TokenMerging, TokenStream
from ovseg.encoders.towers import Block, TimmTrunk
from ovseg.errors import ConfigError
from ovseg.structures import OpenBlock, PatchFeatures
from ovseg.windows import check_divisible

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: A guide's feature: final tokens after the last norm, or one block's projection, heads concatenated;
#: "qk" is the sum of q and k.
FeatureKind = Literal["tokens", "q", "k", "v", "qk"]


class DinoEncoder(nn.Module):
    """A self-supervised ViT as a dense guide: DINO, DINOv2 (with or without registers), DINOv3.

    Args:
        trunk: a plain timm `VisionTransformer`, or the `Eva` that DINOv3 is in timm.
        kind: which feature.
        layer: of which block (negative from the end) q, k or v are taken; "tokens" are the last block's.
        mean, std: RGB statistics of the training images, for values in [0, 1].
        positions: how position embeddings are resampled; DINO's own code adds 0.1 (the default). DINOv3
            has none to resample.
        name, weights_sha256: for messages and manifests.
        merging: lets the trunk merge alike tokens on their way to `layer`, which finds them un-merged.

    Raises:
        CheckpointError: the trunk is neither.
        ConfigError: no such kind or layer, or DINOv3 was to merge: its attention turns every token by its
            place, and merged ones have none.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        *,
        kind: FeatureKind = "tokens",
        layer: int = -1,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        positions: PositionRule | None = None,
        name: str = "",
        weights_sha256: str = "",
        merging: TokenMerging | None = None,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.merging = merging
        if merging is not None and isinstance(trunk, timm.models.eva.Eva):
            raise ConfigError(
                f"the guide '{name or 'DINOv3'}' cannot merge tokens: DINOv3 turns each by its place, and "
                f"merged ones have none. Use DINO or DINOv2, or leave merging out"
            )
        depth = len(self.tower.blocks)
        if kind not in get_args(FeatureKind):
            raise ConfigError(f"kind must be one of {', '.join(get_args(FeatureKind))}, got '{kind}'")
        if not -depth <= layer < depth or (kind == "tokens" and layer % depth != depth - 1):
            raise ConfigError(
                f"layer must name one of {depth} blocks (negative from the end), and the last one for "
                f"'tokens', got {layer}"
            )
        self.kind: FeatureKind = kind
        self.layer = layer % depth
        self.positions = positions or PositionRule()
        self.name = name
        self.weights_sha256 = weights_sha256
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def tower(self) -> TimmTrunk | EvaTrunk:
        """The trunk's pieces under common names."""
        return EvaTrunk(self.trunk) if isinstance(self.trunk, timm.models.eva.Eva) else TimmTrunk(self.trunk)

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Pixels of a patch."""
        return self.tower.patch_hw

    def cast(self, dtype: torch.dtype) -> None:
        """The trunk in another precision; statistics stay float32."""
        self.trunk.to(dtype)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Let torch compile the transformer blocks."""
        for block in self.tower.blocks:
            block.compile(backend)

    def with_kind(self, kind: FeatureKind, layer: int = -1) -> DinoEncoder:
        """The same trunk, not a copy of it, with another feature.

        Raises:
            ConfigError: no such kind or layer.
        """
        return self._sharing(kind, layer, self.merging)

    def with_merging(self, merging: TokenMerging | None) -> DinoEncoder:
        """The same trunk, not a copy of it, merging tokens or not.

        Raises:
            ConfigError: DINOv3 was to merge.
        """
        return self._sharing(self.kind, self.layer, merging)

    def _sharing(self, kind: FeatureKind, layer: int, merging: TokenMerging | None) -> DinoEncoder:
        other = DinoEncoder(
            self.trunk,
            kind=kind,
            layer=layer,
            positions=self.positions,
            name=self.name,
            weights_sha256=self.weights_sha256,
            merging=merging,
        )
        other.mean, other.std = self.mean, self.std
        other.training = self.training
        return other

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> PatchFeatures:
        """Features of a batch, C channels each.

        Args:
            image: RGB in [0, 1]; H and W multiples of the patch.

        Raises:
            ShapeError: H or W is no multiple of the patch; the message states the nearest that is.
        """
        tower = self.tower
        tokens, hw, block = self._enter(tower, image, self.layer)
        if self.kind == "tokens":
            tokens = tower.finish(block(tokens))
        else:
            # of the plain block: what a patch shows, not where it is (DINOv3 rotates q and k by position)
            parts = dict(zip("qkv", tower.blocks[self.layer].split(tokens), strict=True))
            part = torch.stack([parts[letter] for letter in self.kind]).sum(dim=0)
            tokens = part.transpose(1, 2).flatten(2)
        prefix, patches = tokens[:, : tower.num_prefix], tokens[:, tower.num_prefix :]
        return PatchFeatures(patches.mT.unflatten(-1, hw), prefix, (image.shape[-2], image.shape[-1]))

    def last_block(self, image: Float[Tensor, "B 3 H W"]) -> OpenBlock:
        """The last block between its projections and its attention, for what needs more than one feature.

        q and k are as the attention takes them (DINOv3: rotated). What the class token pays each token is
        row 0 of `softmax(q @ k.mT / sqrt(d))`.

        Args:
            image: as for `forward`.

        Raises:
            ShapeError: as for `forward`.
        """
        tower = self.tower
        tokens, hw, block = self._enter(tower, image, len(tower.blocks) - 1)
        q, k, v = block.split(tokens)
        image_hw = (image.shape[-2], image.shape[-1])
        return OpenBlock(q, k, v, tokens, hw, num_prefix=tower.num_prefix, image_hw=image_hw)

    def _enter(
        self, tower: TimmTrunk | EvaTrunk, image: Tensor, index: int
    ) -> tuple[Tensor, tuple[int, int], Block]:
        """The stream that enters a block, the patch grid, and the block on that grid."""
        check_divisible((image.shape[-2], image.shape[-1]), tower.patch_hw)
        dtype: Any = next(self.trunk.parameters()).dtype
        tokens, hw = tower.embed(((image - self.mean) / self.std).to(dtype), self.positions)
        blocks = tower.blocks_on(hw)
        stream = TokenStream(tokens, self.merging, depth=len(blocks), num_prefix=tower.num_prefix)
        for place, block in enumerate(blocks[:index]):
            stream.run(block, place)
        return stream.full, hw, blocks[index]
