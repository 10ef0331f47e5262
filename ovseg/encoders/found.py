"""FOUND: where any object is, learnt from a self-supervised ViT without a label.

A 1x1 convolution on the keys of DINO's last block, trained to tell objects from what resembles the patch that
the class token attends to least. Training is in `ovseg.training.found`.

Source: Simeoni et al., "Unsupervised Object Localization: Observing the Background to Discover Objects",
arXiv 2212.07834; github.com/valeoai/FOUND at 1ad22bac.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ovseg.encoders.checkpoints import load_state_dict
from ovseg.encoders.dino import DinoEncoder
from ovseg.errors import CheckpointError, ConfigError, ShapeError
from ovseg.structures import OpenBlock


class FoundEncoder(nn.Module):
    """Objectness of every patch.

    Args:
        dino: the ViT; its keys are read, whatever its `kind` (ViT-S/8 of DINO for the official decoder).
        decoder: 1x1 convolution from keys, heads concatenated, to one logit; None makes an untrained one.
        name, weights_sha256: for messages and manifests.

    Raises:
        ConfigError: the ViT has no class token.
        ShapeError: the decoder was made for keys of another width.
    """

    def __init__(
        self,
        dino: DinoEncoder,
        decoder: nn.Conv2d | None = None,
        *,
        name: str = "",
        weights_sha256: str = "",
    ) -> None:
        super().__init__()
        if dino.tower.num_prefix == 0:
            raise ConfigError("FOUND needs a ViT with a class token, and this one has none: use DINO")
        width: int = dino.trunk.embed_dim  # type: ignore[assignment]
        self.dino = dino
        self.decoder = decoder or nn.Conv2d(width, 1, 1)
        if self.decoder.in_channels != width:
            raise ShapeError(
                f"the decoder was trained on keys of {self.decoder.in_channels} channels, this ViT's have "
                f"{width}: use the ViT that it was trained with (DINO ViT-S/8 for the official decoder)"
            )
        self.name = name
        self.weights_sha256 = weights_sha256

    @property
    def patch_hw(self) -> tuple[int, int]:
        """Pixels of a patch."""
        return self.dino.patch_hw

    def cast(self, dtype: torch.dtype) -> None:
        """The weights in another precision; statistics stay float32."""
        self.dino.cast(dtype)
        self.decoder.to(dtype)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Let torch compile the ViT's blocks."""
        self.dino.compile_blocks(backend)

    def open(self, image: Float[Tensor, "B 3 H W"]) -> OpenBlock:
        """The ViT's last block, without gradients: the ViT stays as it is.

        Args:
            image: RGB in [0, 1], of any size: the mean colour is added at right and bottom to fill patches,
                as in FOUND's evaluation.
        """
        missing = [-side % patch for side, patch in zip(image.shape[-2:], self.patch_hw, strict=True)]
        if any(missing):
            image = F.pad(image - self.dino.mean, (0, missing[1], 0, missing[0])) + self.dino.mean
        with torch.no_grad():
            return self.dino.last_block(image)

    def decode(self, block: OpenBlock) -> Float[Tensor, "B 1 h w"]:
        """Objectness logits from an opened block."""
        return self.decoder(keys_of(block).to(self.decoder.weight.dtype))

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1 h w"]:
        """Objectness logits; above 0 is object. See `open` for the image."""
        return self.decode(self.open(image))


def keys_of(block: OpenBlock) -> Float[Tensor, "B C h w"]:
    """The patches' keys, heads concatenated."""
    return patches_of(block.k, block)


def patches_of(part: Float[Tensor, "B G N d"], block: OpenBlock) -> Float[Tensor, "B C h w"]:
    """The patches' queries, keys or values on their grid, heads concatenated."""
    return part[:, :, block.num_prefix :].transpose(1, 2).flatten(2).mT.unflatten(-1, block.hw)


def class_attention(block: OpenBlock) -> Float[Tensor, "B G n"]:
    """What the class token pays each patch, of 1 for all tokens, head by head."""
    logits = block.q[:, :, :1].float() @ block.k.float().mT * block.q.shape[-1] ** -0.5
    return logits.softmax(dim=-1)[:, :, 0, block.num_prefix :]


def background_seed(block: OpenBlock, *, least_cosine: float = 0.3) -> Bool[Tensor, "B h w"]:
    """Patches that resemble the one with the least class attention: the background to begin with.

    Heads with sparse attention count for more, in the attention as in the keys (section 3.1 of the paper).

    Args:
        block: the last block of the ViT.
        least_cosine: to the reference patch; above it is background (tau in the paper).
    """
    attention = class_attention(block)
    threshold = attention.mean(dim=(1, 2), keepdim=True)
    share = (attention > threshold).float().mean(dim=-1) + 1e-10
    weight = (share.sum(dim=-1, keepdim=True) / share).log()[:, :, None]
    reference = (weight * attention).sum(dim=1).argmin(dim=-1)
    keys = block.k[:, :, block.num_prefix :].float() * weight[..., None]
    unit = F.normalize(keys.transpose(1, 2).flatten(2), dim=-1)
    cosine = (unit @ unit[torch.arange(len(unit)), reference][..., None])[..., 0]
    return (cosine > least_cosine).unflatten(-1, block.hw)


def load_decoder(path: Path) -> nn.Conv2d:
    """FOUND's decoder from a file.

    Args:
        path: with its `weight` and `bias`, bare or as `decoder.*`, alone or among other weights.

    Raises:
        CheckpointError: no such file, or no decoder in it.
    """
    state = load_state_dict(path)
    known = re.compile(r"((.*\.)?decoder\.)?(weight|bias)")
    named = {match[3]: value.float() for name, value in state.items() if (match := known.fullmatch(name))}
    weight, bias = named.get("weight"), named.get("bias")
    if weight is None or bias is None or weight.shape != (1, weight[0].numel(), 1, 1) or bias.shape != (1,):
        shapes = {name: tuple(value.shape) for name, value in list(state.items())[:4]}
        raise CheckpointError(
            f"{path} is no FOUND decoder: expected weight (1, C, 1, 1) and bias (1,), got {shapes}"
        )
    decoder = nn.Conv2d(weight.shape[1], 1, 1)
    decoder.load_state_dict(named)
    return decoder
