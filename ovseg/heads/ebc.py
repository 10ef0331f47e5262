"""CLIP-EBC: a block of pixels is classified as "no person", "one person", "two people" ..., in words.

`features -> (bilinear to a cell per block) -> decoder -> unit length; logits = scale * cosine with the
sentences; density = sum of probability times what the bin stands for; count = sum of the density.`

Source: Ma, Sanchez, Guha, "CLIP-EBC: CLIP Can Count Accurately through Enhanced Blockwise Classification",
arXiv 2403.09281; github.com/Yiming-M/CLIP-EBC at b52a5944, models/clip/model.py and utils/eval_utils.py.

Its images are normalised by ImageNet's statistics, not CLIP's: see `check_statistics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.counting_results import ClassCount, Counts
from ovseg.errors import ConfigError, ShapeError
from ovseg.heads.count_bins import CountBins
from ovseg.windows import spans

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def check_statistics(mean: Tensor, std: Tensor) -> None:
    """Raises ConfigError unless an encoder normalises as CLIP-EBC was trained, by ImageNet's statistics."""
    for what, found, wanted in (("mean", mean, IMAGENET_MEAN), ("std", std, IMAGENET_STD)):
        if not torch.allclose(found.flatten().float().cpu(), torch.tensor(wanted), atol=2e-3):
            raise ConfigError(
                f"the encoder normalises with {what} {[round(x, 4) for x in found.flatten().tolist()]}, "
                f"CLIP-EBC with ImageNet's {list(wanted)}: build it with "
                "mean=IMAGENET_MEAN, std=IMAGENET_STD"
            )


@dataclass(frozen=True)
class BlockCounts:
    """What the head says of every block.

    Attributes:
        logits: `(B, n, h, w)`, one for each bin.
        density: `(B, 1, h, w)`, expected number of objects.
        variance: `(B, 1, h, w)` of that number.
    """

    logits: Float[Tensor, "B n h w"]
    density: Float[Tensor, "B 1 h w"]
    variance: Float[Tensor, "B 1 h w"]

    @property
    def counts(self) -> Float[Tensor, " B"]:
        """Expected number of objects by image."""
        return self.density.sum(dim=(1, 2, 3))


class EbcHead(nn.Module):
    """Dense features and sentences about numbers to a density.

    Args:
        text: encoded sentences, one for each bin (`CountBins.prompts`).
        bins: what they say.
        channels: of the features; where it is not the text's D, a 1x1 convolution follows the decoder.
        feature_px: pixels of a feature cell; resized bilinearly where the bins' block is another.
        decoder: maps features to features of `channels`; None for none. The published ones are a residual
            block: `torchvision.models.resnet.BasicBlock(channels, channels)` after a ViT, a bottleneck
            after a ResNet.
        logit_scale: to start with; it is learnt.

    Raises:
        ShapeError: there is not one sentence for each bin.
    """

    text: Tensor
    centres: Tensor

    def __init__(
        self,
        text: Float[Tensor, "n D"],
        bins: CountBins,
        *,
        channels: int,
        feature_px: int = 16,
        decoder: nn.Module | None = None,
        logit_scale: float = 1 / 0.07,
    ) -> None:
        super().__init__()
        if len(text) != len(bins):
            raise ShapeError(f"{len(bins)} bins need a sentence each, got {len(text)}")
        self.bins = bins
        self.feature_px = feature_px
        self.decoder = decoder or nn.Identity()
        dim = text.shape[1]
        self.projection = nn.Identity() if channels == dim else nn.Conv2d(channels, dim, 1)
        self.log_scale = nn.Parameter(torch.tensor(math.log(logit_scale)))
        self.register_buffer("text", F.normalize(text.detach().float(), dim=1))
        self.register_buffer("centres", torch.tensor(bins.centres), persistent=False)

    def forward(self, features: Float[Tensor, "B C h w"]) -> BlockCounts:
        """Counts of every block."""
        if self.feature_px != self.bins.block_px:
            factor = self.feature_px / self.bins.block_px
            features = F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)
        unit = F.normalize(self.projection(self.decoder(features)).float(), dim=1)
        logits = torch.einsum("bdhw,nd->bnhw", unit, self.text) * self.log_scale.exp()
        probabilities = logits.softmax(dim=1)
        centres = self.centres[:, None, None]
        density = (probabilities * centres).sum(dim=1, keepdim=True)
        variance = (probabilities * (centres - density).square()).sum(dim=1, keepdim=True)
        return BlockCounts(logits, density, variance)


def slide(
    predict: Callable[[Float[Tensor, "windows 3 y x"]], Tensor],
    image: Float[Tensor, "B 3 H W"],
    *,
    window_hw: tuple[int, int],
    stride_hw: tuple[int, int],
    block_px: int,
    max_batch: int = 16,
) -> Float[Tensor, "B M h w"]:
    """Block maps of windows, laid side by side; where windows overlap, their mean.

    The last window of a row or column is shifted inwards; an image smaller than a window is one window.

    Args:
        predict: windows to maps `(windows, M, y / block_px, x / block_px)`.
        image: sides at least `block_px`; what is left of a division by it has no cell of its own.
        window_hw: multiples of `block_px`.
        stride_hw: steps, at most a window.
        block_px: pixels of a cell.
        max_batch: windows at once.

    Raises:
        ConfigError: a window is no multiple of the block, or a stride leaves gaps.
    """
    if any(side % block_px or side < 1 for side in window_hw):
        raise ConfigError(
            f"windows of {window_hw[0]}x{window_hw[1]} (HxW) do not hold whole blocks of {block_px} px"
        )
    if any(not 1 <= step <= side for step, side in zip(stride_hw, window_hw, strict=True)):
        raise ConfigError(f"strides {stride_hw} must lie between 1 and the window {window_hw}: else gaps")
    cells = block_px
    size_hw = (image.shape[-2], image.shape[-1])
    rows, cols = (spans(*axis) for axis in zip(size_hw, window_hw, stride_hw, strict=True))
    boxes = [(top, bottom, left, right) for top, bottom in rows for left, right in cols]
    per_step = max(max_batch // len(image), 1)
    joined: Tensor | None = None
    for start in range(0, len(boxes), per_step):
        part = boxes[start : start + per_step]
        maps = predict(torch.cat([image[..., t:b, le:r] for t, b, le, r in part]))
        if joined is None:
            joined = maps.new_zeros(len(image), maps.shape[1], *(side // cells for side in size_hw))
            visits = torch.zeros_like(joined[:1, :1])
        for (top, bottom, left, right), piece in zip(part, maps.split(len(image)), strict=True):
            where = (..., slice(top // cells, bottom // cells), slice(left // cells, right // cells))
            joined[where] += piece
            visits[where] += 1
    assert joined is not None
    return joined / visits


class EbcCounter(nn.Module):
    """Images to counts by CLIP-EBC.

    An image is resized, up, only so far that its sides hold a window and whole blocks.

    Args:
        encode: RGB in [0, 1] `(B, 3, y, x)` to features `(B, C, y / feature_px, x / feature_px)`; normalises
            by ImageNet's statistics (`check_statistics`, where it has `mean` and `std`).
        head: classifies blocks.
        name: what is counted.
        window_hw, stride_hw: see `slide`; published for ViTs 224 and 224. None takes an image as a whole.
        max_batch: windows at once.
        published: of the authors' weights, or trained as they were. If not, statistics are not checked.

    Raises:
        ConfigError: other statistics than CLIP-EBC's.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        head: EbcHead,
        *,
        name: str = "person",
        window_hw: tuple[int, int] | None = (224, 224),
        stride_hw: tuple[int, int] | None = (224, 224),
        max_batch: int = 16,
        published: bool = True,
    ) -> None:
        super().__init__()
        mean, std = getattr(encode, "mean", None), getattr(encode, "std", None)
        if published and isinstance(mean, Tensor) and isinstance(std, Tensor):
            check_statistics(mean, std)
        self.encode = encode
        self.head = head
        self.name = name
        self.window_hw = window_hw
        self.stride_hw = stride_hw
        self.max_batch = max_batch

    @torch.no_grad()
    def forward(self, image: Float[Tensor, "B 3 H W"], name: str | None = None) -> list[Counts]:
        """One result per image: number, density and uncertainty (standard deviation, blocks independent).

        Args:
            image: RGB in [0, 1].
            name: what results call the objects, by default the counter's own.
        """

        def predict(windows: Tensor) -> Tensor:
            blocks = self.head(self.encode(windows))
            return torch.cat([blocks.density, blocks.variance], dim=1)

        image_hw = (image.shape[-2], image.shape[-1])
        block = self.head.bins.block_px
        unit = block if self.window_hw else math.lcm(block, self.head.feature_px)
        sides = zip(self.window_hw or (1, 1), image_hw, strict=True)
        factor = max(1.0, *(side / own for side, own in sides))
        height, width = (math.ceil(round(own * factor, 6) / unit) * unit for own in image_hw)
        size_hw = (height, width)
        if size_hw != image_hw:
            image = F.interpolate(image, size=size_hw, mode="bilinear", align_corners=False)
        maps = slide(
            predict,
            image,
            window_hw=self.window_hw or size_hw,
            stride_hw=self.stride_hw or self.window_hw or size_hw,
            block_px=block,
            max_batch=self.max_batch,
        )
        results = []
        for density, variance in maps.float().cpu().unbind(0):
            count = ClassCount(
                name=name or self.name,
                class_index=0,
                number=float(density.double().sum()),
                density=density.numpy(),
                points_xy=density.new_zeros(0, 2).numpy(),
                uncertainty=math.sqrt(float(variance.double().sum())),
            )
            results.append(Counts((count,), image_hw))
        return results
