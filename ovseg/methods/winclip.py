"""WinCLIP: CLIP asked about every small window of patches, and compared with good examples, if any.

The class token sees a window by running the whole tower on the class token and the window's patch tokens
alone. A window's probability of the abnormal state goes to its patches by the harmonic mean over all windows
that cover them, which any window that is sure of "normal" pulls down; scales and the image's own probability
are merged in the same way. With good examples, a patch or window is as anomalous as its cosine distance to
the nearest of theirs.

Source: Jeong et al., arXiv 2303.14814, sections 4.2 and 4.3. The authors published no code; numbers agree
with github.com/open-edge-platform/anomalib at b7233686, models/image/winclip.
Deviations: any size of image, and windows of any image in one batch. Tokens are taken after the norm before
the first block instead of before it, which is the same, as that norm looks at one token at a time. A distance
is never below 0, where rounding would make its reciprocal large and negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ovseg.anomaly_structures import ABNORMAL, AnomalyScores, StateBank
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.errors import ConfigError
from ovseg.windows import whole_patches

#: Cosines held at once when a patch looks for the nearest good one.
CHUNK_ELEMENTS = 2**24


def window_cells(hw: tuple[int, int], side: int) -> Int[Tensor, "windows cells"]:
    """Flat cell indices of every `side` x `side` window of a grid, stride 1, row by row.

    Raises:
        ConfigError: the window does not fit the grid.
    """
    if not 1 <= side <= min(hw):
        raise ConfigError(
            f"a window of {side}x{side} patches does not fit a grid of {hw[0]}x{hw[1]}: use smaller windows "
            f"or a larger image"
        )
    cells = torch.arange(hw[0] * hw[1]).reshape(hw)
    return cells.unfold(0, side, 1).unfold(1, side, 1).reshape(-1, side * side)


def harmonic_map(
    scores: Float[Tensor, "B windows"], cells: Int[Tensor, "windows cells"], hw: tuple[int, int]
) -> Float[Tensor, "B h w"]:
    """For every cell the harmonic mean of the scores of all windows that cover it.

    Args:
        scores: not negative.
        cells: see `window_cells`.
        hw: the grid; every cell is covered.
    """
    owner = cells.flatten().to(scores.device)
    inverse = scores.reciprocal().repeat_interleave(cells.shape[1], dim=1)
    sums = inverse.new_zeros(len(scores), hw[0] * hw[1]).index_add_(1, owner, inverse)
    return (owner.bincount(minlength=hw[0] * hw[1]) / sums).unflatten(1, hw)


def harmonic_mean(maps: Sequence[Float[Tensor, "B h w"]]) -> Float[Tensor, "B h w"]:
    """Harmonic mean of several maps."""
    return len(maps) / torch.stack([each.reciprocal() for each in maps]).sum(dim=0)


def nearest_distance(features: Float[Tensor, "B N C"], good: Float[Tensor, "R C"]) -> Float[Tensor, "B N"]:
    """`min_r (1 - cos(f, r)) / 2`, in [0, 1]."""
    queries, good = F.normalize(features.flatten(0, 1).float(), dim=-1), F.normalize(good.float(), dim=-1)
    nearest = [(part @ good.T).amax(dim=1) for part in queries.split(max(CHUNK_ELEMENTS // len(good), 1))]
    return ((1 - torch.cat(nearest)) / 2).clamp(0, 1).unflatten(0, features.shape[:2])


@dataclass(frozen=True)
class WindowFeatures:
    """An image as WinCLIP sees it.

    Attributes:
        image: class token `(B, D)`, projected.
        patches: patch tokens `(B, N, C)` of the last block, not projected.
        windows: class token of every window `(B, windows, D)`, projected, by the window's side in patches.
        hw: the patch grid.
    """

    image: Float[Tensor, "B D"]
    patches: Float[Tensor, "B N C"]
    windows: Mapping[int, Float[Tensor, "_ _ _"]]
    hw: tuple[int, int]

    def zero_shot(self, bank: StateBank, temperature: float) -> AnomalyScores:
        """Scores from words alone."""
        score = bank.probabilities(self.image, temperature)[..., ABNORMAL]
        maps = [score[:, None, None].expand(-1, *self.hw)]
        for side, features in self.windows.items():
            found = bank.probabilities(features, temperature)[..., ABNORMAL]
            maps.append(harmonic_map(found, window_cells(self.hw, side), self.hw))
        return AnomalyScores(harmonic_mean(maps), score)

    def distances(self, good: WindowFeatures) -> Float[Tensor, "B h w"]:
        """How far every patch is from good examples, in [0, 1]: mean over patches and windows of each size.

        Args:
            good: of one or more images, which may be of another size; the same windows.

        Raises:
            ConfigError: other windows.
        """
        if set(good.windows) != set(self.windows):
            raise ConfigError(
                f"good examples have windows of {sorted(good.windows)} patches, the image "
                f"{sorted(self.windows)}"
            )
        maps = [nearest_distance(self.patches, good.patches.flatten(0, 1)).unflatten(1, self.hw)]
        for side, features in self.windows.items():
            far = nearest_distance(features, good.windows[side].flatten(0, 1))
            maps.append(harmonic_map(far, window_cells(self.hw, side), self.hw))
        return torch.stack(maps).mean(dim=0)

    def few_shot(self, bank: StateBank, temperature: float, good: WindowFeatures) -> AnomalyScores:
        """Scores from words and good examples: half each."""
        words, far = self.zero_shot(bank, temperature), self.distances(good)
        return AnomalyScores((words.map + far) / 2, (words.score + far.amax(dim=(1, 2))) / 2)


class WinCLIP(nn.Module):
    """WinCLIP on any CLIP ViT with a class token.

    Args:
        encoder: the image tower (published: ViT-B/16-plus at 240 pixels, LAION-400M).
        windows: sides of the windows, in patches; none leaves the image's own score everywhere.
        temperature: logit scale; anomalib divides cosines by 0.07, other code by 0.01.
        max_windows: windows in the tower at once.
        positions: how position embeddings are resampled to other grids.

    Raises:
        ConfigError: the tower has no class token.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        *,
        windows: Sequence[int] = (2, 3),
        temperature: float = 1 / 0.07,
        max_windows: int = 512,
        positions: PositionRule | None = None,
    ) -> None:
        super().__init__()
        if encoder.tower.num_prefix == 0:
            raise ConfigError("WinCLIP asks the class token, and this tower has none: use a CLIP ViT")
        self.encoder = encoder
        self.windows = tuple(windows)
        self.temperature = temperature
        self.max_windows = max_windows
        self.positions = positions or PositionRule("size")

    @torch.no_grad()
    def features(self, image: Float[Tensor, "B 3 H W"]) -> WindowFeatures:
        """Class tokens of the image and of all windows, and patch tokens; about four passes' work at 15 x 15.

        Args:
            image: RGB in [0, 1]; what fills no patch at right and bottom is left out.

        Raises:
            ShapeError: the image is smaller than a patch.
            ConfigError: a window does not fit.
        """
        tower = self.encoder.tower
        entering, hw = self.encoder.embed(whole_patches(image, self.encoder.patch_hw), self.positions)
        prefix, cells = entering[:, : tower.num_prefix], entering[:, tower.num_prefix :]
        windows = {}
        for side in self.windows:
            index = window_cells(hw, side).to(cells.device)
            total = len(image) * len(index)
            seen = []
            for part in torch.arange(total, device=cells.device).split(self.max_windows):
                owner, window = part // len(index), part % len(index)
                tokens = torch.cat([prefix[owner], cells[owner[:, None], index[window]]], dim=1)
                seen.append(tower.finish(self._run(tokens)[:, :1])[:, 0])
            windows[side] = torch.cat(seen).float().unflatten(0, (len(image), -1))
        tokens = self._run(entering)
        return WindowFeatures(
            tower.finish(tokens[:, :1])[:, 0].float(), tokens[:, tower.num_prefix :].float(), windows, hw
        )

    def _run(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        for block in self.encoder.tower.blocks:
            tokens = block(tokens)
        return tokens

    def forward(
        self, image: Float[Tensor, "B 3 H W"], bank: StateBank, good: WindowFeatures | None = None
    ) -> AnomalyScores:
        """Scores on the patch grid.

        Args:
            image: RGB in [0, 1].
            bank: `ovseg.text.states.state_bank(encoder, name, "winclip")`.
            good: `features` of images without a fault.
        """
        found = self.features(image)
        if good is None:
            return found.zero_shot(bank, self.temperature)
        return found.few_shot(bank, self.temperature, good)
