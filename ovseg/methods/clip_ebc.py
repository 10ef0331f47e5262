"""CLIP-EBC: an image tower, trained to say in words how many people each block of the picture holds.

Source: Ma, Sanchez, Guha, "CLIP-EBC: CLIP Can Count Accurately through Enhanced Blockwise Classification",
arXiv 2403.09281; github.com/Yiming-M/CLIP-EBC at b52a5944, models/clip/model.py and trainer.py.

Two kinds of tower were published. A ViT stays frozen and gets 32 learnt tokens at every block; a residual
block follows its patch tokens. A ResNet is trained as a whole, with its last stage at stride 16; a bottleneck
follows, whose 3x3 convolution is as wide as the stage. Unlike the methods that read a score map, it has to be
trained: `configs/clip-ebc`.

Deviations: none in what is computed; windows, bins and losses have theirs in their own files.
"""

from __future__ import annotations

from typing import Any, Literal

from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.clip_loading import LoadedClip
from ovseg.encoders.clip_resnet import ClipResNet
from ovseg.encoders.prompted import PromptedEncoder
from ovseg.heads.count_bins import CountBins
from ovseg.heads.ebc import IMAGENET_MEAN, IMAGENET_STD, EbcCounter, EbcHead
from ovseg.text.encoder import TextEncoder

Statistics = Literal["imagenet", "own"]


def clip_ebc(
    loaded: LoadedClip,
    bins: CountBins,
    *,
    singular: str = "person",
    plural: str = "people",
    digits: bool = False,
    num_prompts: int = 32,
    window: int | None = 224,
    stride: int | None = None,
    statistics: Statistics = "imagenet",
    logit_scale: float = 1 / 0.07,
    max_batch: int = 16,
) -> EbcCounter:
    """An untrained counter; what is to be trained has gradients, all else has none.

    Args:
        loaded: a CLIP with a ViT or a ResNet.
        bins: the numbers that a block can have.
        singular, plural: what is counted, for the sentences; `singular` is also its class's name.
        digits: numbers in the sentences as digits.
        num_prompts: tokens at each block of a ViT.
        window: side of the windows that larger images are counted in; None counts them as a whole.
        stride: between windows, by default a window.
        statistics: images are normalised as CLIP-EBC was trained ("imagenet"), or as the tower was ("own").
        logit_scale: to start with; towers whose sentences lie close together need a larger one.
        max_batch: windows at once.

    Raises:
        CheckpointError: a tower of another kind.
    """
    published = statistics == "imagenet"
    about: dict[str, Any] = {
        "mean": IMAGENET_MEAN if published else loaded.mean,
        "std": IMAGENET_STD if published else loaded.std,
        "name": loaded.name,
        "weights_sha256": loaded.weights_sha256,
    }
    visual: Any = loaded.model.visual
    encode: ClipResNet | PromptedEncoder
    decoder: nn.Module
    if isinstance(visual, ModifiedResNet):
        encode = ClipResNet(visual, **about).requires_grad_(True)
        visual.attnpool.requires_grad_(False)
        # torchvision's widths count in quarters of what comes out; this one is not narrowed.
        decoder = Bottleneck(encode.channels, encode.channels // 4, base_width=256)
    else:
        encode = PromptedEncoder(ClipEncoder(visual, **about), num_prompts=num_prompts)
        decoder = BasicBlock(encode.channels, encode.channels)
    head = EbcHead(
        encode_bins(loaded, bins, singular=singular, plural=plural, digits=digits),
        bins,
        channels=encode.channels,
        feature_px=encode.patch_px,
        decoder=decoder,
        logit_scale=logit_scale,
    )
    head.apply(_initialise)
    window_hw = None if window is None else (window, window)
    stride_hw = window_hw if stride is None else (stride, stride)
    return EbcCounter(
        encode,
        head,
        name=singular,
        window_hw=window_hw,
        stride_hw=stride_hw,
        max_batch=max_batch,
        published=published,
    )


def encode_bins(
    loaded: LoadedClip, bins: CountBins, *, singular: str, plural: str, digits: bool = False
) -> Tensor:
    """A unit vector for each bin's sentence."""
    text = TextEncoder.of(loaded)
    return text.encode(bins.prompts(singular=singular, plural=plural, digits=digits)).clone()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
