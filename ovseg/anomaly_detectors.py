"""Anomaly methods on images as users have them: of any size, whole or in windows, with or without good ones.

A detector takes images of one size and gives `AnomalyScores`; what it learned from good images it keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from ovseg.anomaly_structures import AnomalyScores, StateBank
from ovseg.errors import ConfigError
from ovseg.heads.memory_bank import MemoryBankHead
from ovseg.heads.patch_memory import PatchMemory
from ovseg.methods.winclip import WinCLIP, WindowFeatures
from ovseg.windows import WindowPlan, resize_image, resized_hw

Pixels = UInt8[np.ndarray, "_ _ 3"]


@runtime_checkable
class Detector(Protocol):
    """What an `AnomalyInferencer` asks."""

    #: Whether words are compared with, so that a bank is needed.
    reads_words: bool
    #: Whether it can do nothing without good images.
    needs_good: bool
    #: Whether good images change its scores; otherwise they give a threshold only.
    learns: bool

    def learn(self, good: Iterable[Pixels]) -> None:
        """Remember good images, and forget those before."""

    def held_out(self, good: Iterable[Pixels], bank: StateBank | None) -> Iterator[AnomalyScores]:
        """Scores of each good image, as if it alone had not been learned."""

    def __call__(self, images: Sequence[Pixels], bank: StateBank | None) -> AnomalyScores:
        """Scores of images of one size."""


class WordDetector(nn.Module):
    """WinCLIP, AnoVL or AnomalyCLIP on images of any size.

    Published code shows the network the whole image, resized to a square. With windows, it sees each window
    of the image for itself: maps are joined, overlaps averaged, and the image's score is that of its worst
    window.

    Args:
        method: `(image (B, 3, H, W), bank)` to `AnomalyScores`, with an `encoder`.
        size: side of the square in pixels (published: 240 WinCLIP and AnoVL, 518 AnomalyCLIP). Resized
            bicubic with antialias, as all three do.
        windows: how images are cut instead, at their own resolution or that of `short_side`; `size` is not
            used then. An image that is smaller than a window is enlarged to it.
        short_side: with windows, images are resized to this short side first.

    Raises:
        ConfigError: a short side without windows, or windows without a crop.
    """

    reads_words = True
    needs_good = False

    def __init__(
        self,
        method: nn.Module,
        *,
        size: int,
        windows: WindowPlan | None = None,
        short_side: int | None = None,
    ) -> None:
        super().__init__()
        if windows is None and short_side is not None:
            raise ConfigError("short_side goes with windows: name a crop, or leave it out and take `size`")
        if windows is not None and windows.crop is None:
            raise ConfigError("windows need a crop, the side of a window in pixels")
        if size < 1 or (short_side is not None and short_side < 1):
            raise ConfigError(f"size and short_side are pixels, at least 1, got {size} and {short_side}")
        self.method: Any = method
        self.size = size
        self.windows = windows
        self.short_side = short_side
        self.learns = isinstance(method, WinCLIP)
        self.good: list[WindowFeatures] = []

    @torch.no_grad()
    def learn(self, good: Iterable[Pixels]) -> None:
        """Keeps each good image's features (WinCLIP; the others have no use for them).

        Raises:
            ConfigError: there are none.
        """
        self.good = [self._features(image) for image in good] if self.learns else []
        if self.learns and not self.good:
            raise ConfigError("few-shot WinCLIP needs at least one good image, got none")

    def held_out(self, good: Iterable[Pixels], bank: StateBank | None) -> Iterator[AnomalyScores]:
        """Scores of each good image; WinCLIP compares it with the others.

        Args:
            good: those that were learned, in the same order.
            bank: the words.

        Raises:
            ConfigError: there is no other image to compare with.
        """
        for index, image in enumerate(good):
            others = [each for place, each in enumerate(self.good) if place != index]
            if self.learns and not others:
                raise ConfigError("a good image can be scored by other good images only: give at least two")
            yield self._scores([image], bank, others)

    def forward(self, images: Sequence[Pixels], bank: StateBank | None) -> AnomalyScores:
        """Scores of images of one size; the map is on any grid (`AnomalyHead` resizes it).

        Raises:
            ConfigError: no words.
        """
        return self._scores(images, bank, self.good)

    def _scores(
        self, images: Sequence[Pixels], bank: StateBank | None, good: list[WindowFeatures]
    ) -> AnomalyScores:
        if bank is None:
            raise ConfigError("this method compares with words: give a bank of the two states")
        extra = (merged(good),) if good else ()
        if self.windows is None:
            return self.method(self.whole(images), bank, *extra)
        batch = self._resized(images)
        windows = self.windows.windows((batch.shape[-2], batch.shape[-1]), self.method.encoder.patch_hw)
        pieces = windows.cut(batch, self.method.encoder.mean)
        parts = [self.method(part, bank, *extra) for part in pieces.split(self.windows.max_batch)]
        maps = torch.cat([part.map for part in parts])
        resampling = windows.resampling(
            (batch.shape[-2], batch.shape[-1]), (maps.shape[1], maps.shape[2]), images[0].shape[:2]
        ).to(maps.device)
        joined = torch.stack([resampling.apply(each) for each in windows.join(maps[:, None])[:, 0]])
        scores = torch.cat([part.score for part in parts]).unflatten(0, (len(images), -1))
        return AnomalyScores(joined, scores.amax(dim=1))

    def _features(self, image: Pixels) -> WindowFeatures:
        if self.windows is None:
            return self.method.features(self.whole([image]))
        batch = self._resized([image])
        windows = self.windows.windows((batch.shape[-2], batch.shape[-1]), self.method.encoder.patch_hw)
        pieces = windows.cut(batch, self.method.encoder.mean)
        return merged([self.method.features(part) for part in pieces.split(self.windows.max_batch)])

    def whole(self, images: Sequence[Pixels]) -> Float[Tensor, "B 3 size size"]:
        """Whole images as the network sees them: squares, RGB in [0, 1]."""
        sides = (self.size, self.size)
        pictures = [Image.fromarray(each).resize(sides, Image.Resampling.BICUBIC) for each in images]
        return self._tensor([np.asarray(each) for each in pictures])

    def _resized(self, images: Sequence[Pixels]) -> Float[Tensor, "B 3 H W"]:
        assert self.windows is not None
        hw = (images[0].shape[0], images[0].shape[1])
        short = max(self.short_side or min(hw), self.windows.crop or 0)
        size_hw = hw if short == min(hw) else resized_hw(hw, short, long_side=short * max(hw))
        return self._tensor([resize_image(each, size_hw) for each in images])

    def _tensor(self, images: Sequence[Pixels]) -> Float[Tensor, "B 3 H W"]:
        batch = torch.from_numpy(np.stack(images)).to(self.method.encoder.mean.device)
        return batch.permute(0, 3, 1, 2).float() / 255


def merged(parts: Sequence[WindowFeatures]) -> WindowFeatures:
    """Features of several images or windows as one batch."""
    sides = parts[0].windows
    return WindowFeatures(
        torch.cat([part.image for part in parts]),
        torch.cat([part.patches for part in parts]),
        {side: torch.cat([part.windows[side] for part in parts]) for side in sides},
        parts[0].hw,
    )


class MemoryDetector(nn.Module):
    """Patches that no good image has; words play no part.

    Args:
        head: with its guide.
    """

    reads_words = False
    needs_good = True
    learns = True

    def __init__(self, head: MemoryBankHead) -> None:
        super().__init__()
        self.head = head
        self.memory: PatchMemory | None = None

    def learn(self, good: Iterable[Pixels]) -> None:
        """Keeps the patches of good images, thinned to the head's limit."""
        self.memory = self.head.fit(good)

    def load(self, path: Path) -> None:
        """Takes a memory that `PatchMemory.save` wrote.

        Raises:
            CheckpointError: it is damaged, or was made by another guide or with other settings.
        """
        self.memory = PatchMemory.load(path, self.head.settings)

    def held_out(self, good: Iterable[Pixels], bank: StateBank | None = None) -> Iterator[AnomalyScores]:
        """Scores of each good image by the others (see `MemoryBankHead.held_out`)."""
        yield from self.head.held_out(good, self._known())

    def forward(self, images: Sequence[Pixels], bank: StateBank | None = None) -> AnomalyScores:
        """Scores of images of one size, with maps of that size."""
        return self.head(images, self._known())

    def _known(self) -> PatchMemory:
        if self.memory is None:
            raise ConfigError("the memory is empty: give good images first (good=FOLDER)")
        return self.memory
