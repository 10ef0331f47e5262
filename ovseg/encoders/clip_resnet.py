"""CLIP's ResNet as a dense encoder, with the last stage at the stride of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from ovseg.encoders.clip import OPENAI_MEAN, OPENAI_STD
from ovseg.errors import CheckpointError


class ClipResNet(nn.Module):
    """Features of CLIP's `ModifiedResNet` without its attention pooling, one cell for 16 px.

    The last stage's average pools are stepped over: as in CLIP-EBC (github.com/Yiming-M/CLIP-EBC at b52a5944,
    models/clip/_clip/image_encoder.py, `reduction <= 16`), the grid stays as fine as that of a ViT/16.

    Args:
        visual: open_clip's tower.
        mean, std: RGB statistics, for values in [0, 1].
        name: how the weights are called.
        weights_sha256: hash of the weights file.

    Raises:
        CheckpointError: another kind of tower.
    """

    mean: Tensor
    std: Tensor
    patch_px = 16
    #: What `forward` steps through: all of the tower but its pooling.
    STAGES = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        visual: nn.Module,
        *,
        mean: Sequence[float] = OPENAI_MEAN,
        std: Sequence[float] = OPENAI_STD,
        name: str = "",
        weights_sha256: str = "",
    ) -> None:
        super().__init__()
        if not isinstance(visual, ModifiedResNet):
            raise CheckpointError(
                f"expected a ResNet of CLIP such as RN50:openai, this tower is a {type(visual).__name__}"
            )
        self.visual: Any = visual
        self.name = name
        self.weights_sha256 = weights_sha256
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def channels(self) -> int:
        """Of the last stage."""
        return self.visual.layer4[-1].conv3.out_channels

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """The last stage's features; `h = H / 16`, rounded down.

        Args:
            image: RGB in [0, 1].
        """
        visual = self.visual
        grid = visual.stem((image - self.mean) / self.std)
        grid = visual.layer3(visual.layer2(visual.layer1(grid)))
        first, *others = visual.layer4
        out = first.act1(first.bn1(first.conv1(grid)))
        out = first.bn3(first.conv3(first.act2(first.bn2(first.conv2(out)))))
        _, convolution, norm = first.downsample  # the first is the pool that is left out
        grid = first.act3(out + norm(convolution(grid)))
        for block in others:
            grid = block(grid)
        return grid
