"""Anomalies from a few good images: patches that no good image has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from ovseg.anomaly_structures import AnomalyScores
from ovseg.errors import ConfigError, ShapeError
from ovseg.heads.anomaly import TOP_SHARE, top_mean
from ovseg.heads.patch_memory import PatchCollector, PatchMemory, Thinning
from ovseg.resampling import Resampling
from ovseg.windows import WindowPlan, resize_image, resized_hw, whole_patches

#: The turns that AnomalyDINO shows each good image in, where the thing may lie in any direction.
EIGHT_TURNS = (0.0, 45.0, 90.0, 135.0, 180.0, 225.0, 270.0, 315.0)


class MemoryBankHead(nn.Module):
    """Cosine distance of each patch to the nearest patch of the good images.

    Source: Damm et al., "AnomalyDINO", WACV 2025 (dammsi/AnomalyDINO at 572136bed5: short side 448, one
    neighbour, mean of the top 1 %), after PatchCore (Roth et al., CVPR 2022).
    Deviations: features may come window by window, at native resolution; images are resized as everywhere in
    ovseg, bilinear; the foreground is split off by Otsu's threshold on the first principal component in place
    of 10, which is in units of DINOv2's features, and its side is chosen by the middle against the whole in
    place of 35 % of the middle.

    Args:
        guide: image `(B, 3, H, W)` in [0, 1] to `PatchFeatures`, with `patch_hw` and `mean`: a DINO, CLIP's
            image tower.
        windows: how images are cut; by default one window, the whole image.
        short_side: images are resized to this short side first; None keeps their own resolution.
        rotations: degrees by which each good image is turned for the memory (`EIGHT_TURNS`).
        limit: patches kept in memory at most.
        thinning: how patches above the limit go, see `ovseg.heads.patch_memory.Thinning`.
        image_score: mean distance of the worst 1 % of patches ("top"), or of the worst ("max").
        foreground_only: leave the background out of memory and give it distance 0.
        seed: of thinning.
    """

    def __init__(
        self,
        guide: nn.Module,
        *,
        windows: WindowPlan | None = None,
        short_side: int | None = 448,
        rotations: Sequence[float] = (0.0,),
        limit: int = 100_000,
        thinning: Thinning = "random",
        image_score: Literal["top", "max"] = "top",
        foreground_only: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if image_score not in ("top", "max"):
            raise ConfigError(f"image_score must be 'top' or 'max', got '{image_score}'")
        if short_side is not None and short_side < 1:
            raise ConfigError(f"short_side must be at least 1 pixel, or None to resize nothing: {short_side}")
        if not rotations:
            raise ConfigError("rotations must name at least one angle; (0.0,) turns nothing")
        self.guide: Any = guide
        self.windows = windows or WindowPlan()
        self.short_side = short_side
        self.rotations = tuple(rotations)
        self.limit = limit
        self.thinning: Thinning = thinning
        self.image_score = image_score
        self.foreground_only = foreground_only
        self.seed = seed

    @property
    def settings(self) -> dict[str, Any]:
        """All that a memory's patches depend on, apart from the good images: what a stored one must match."""
        return {
            "guide": self.guide.name if getattr(self.guide, "name", "") else type(self.guide).__name__,
            "weights_sha256": getattr(self.guide, "weights_sha256", "") or _weights_hash(self.guide),
            "kind": getattr(self.guide, "kind", ""),
            "layer": getattr(self.guide, "layer", -1),
            "short_side": self.short_side,
            "crop": self.windows.crop,
            "fit": self.windows.fit,
            "foreground_only": self.foreground_only,
        }

    @torch.no_grad()
    def fit(self, good: Iterable[UInt8[np.ndarray, "_ _ 3"]]) -> PatchMemory:
        """A memory of good images, of any sizes.

        Raises:
            ConfigError: there are none.
        """
        collector = PatchCollector(self.limit, thinning=self.thinning, seed=self.seed)
        images = 0
        for images, image in enumerate(good, start=1):
            for degrees in self.rotations:
                grid, foreground, _ = self.patches(turned(image, degrees)[None])
                collector.add(grid[0].flatten(1).T[foreground[0].flatten()], images - 1)
        return collector.memory({**self.settings, "images": images, "rotations": list(self.rotations)})

    @torch.no_grad()
    def patches(
        self, images: UInt8[np.ndarray, "B H W 3"]
    ) -> tuple[Float[Tensor, "B C h w"], Bool[Tensor, "B h w"], Resampling]:
        """Unit patch features of all windows as one mosaic per image, the foreground among them, and the way
        back to the image's size.
        """
        native_hw = (images.shape[1], images.shape[2])
        resized = list(images)
        if self.short_side is not None:
            size_hw = resized_hw(native_hw, self.short_side)
            resized = [resize_image(image, size_hw) for image in images]
        mean = self.guide.mean
        batch = torch.from_numpy(np.stack(resized)).to(mean.device).permute(0, 3, 1, 2).float() / 255
        image_hw = (batch.shape[-2], batch.shape[-1])
        windows = self.windows.windows(image_hw, self.guide.patch_hw)
        pieces = windows.cut(batch, mean)
        parts = [
            self.guide(whole_patches(part, self.guide.patch_hw)).grid.float()
            for part in pieces.split(self.windows.max_batch)
        ]
        cells_hw = (parts[0].shape[-2], parts[0].shape[-1])
        mosaic = windows.join(torch.cat(parts))
        foreground = mosaic.new_ones((len(mosaic), *mosaic.shape[2:]), dtype=torch.bool)
        if self.foreground_only:
            foreground = torch.stack([foreground_cells(each) for each in mosaic])
        resampling = windows.resampling(image_hw, cells_hw, native_hw).to(mosaic.device)
        return F.normalize(mosaic, dim=1), foreground, resampling

    @torch.no_grad()
    def forward(
        self,
        images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
        memory: PatchMemory,
        *,
        without: int | None = None,
    ) -> AnomalyScores:
        """Distances as maps at the images' own size.

        Args:
            images: RGB, of one size.
            memory: what `fit` gave, for this guide.
            without: leave out what this good image has put into the memory.

        Raises:
            ShapeError: images of several sizes, or a memory of another guide.
        """
        sizes = {image.shape for image in images}
        if len(sizes) != 1:
            raise ShapeError(f"a batch needs images of one size, got {sorted(sizes)}: group them by size")
        grid, foreground, resampling = self.patches(np.stack(images))
        memory = memory.to(grid.device)
        maps, scores = [], []
        for patches, inside in zip(grid, foreground, strict=True):
            distances = memory.distances(patches.flatten(1).T, without=without).view(inside.shape) * inside
            top = top_mean(distances, TOP_SHARE) if self.image_score == "top" else float(distances.max())
            scores.append(top)
            maps.append(resampling.apply(distances))
        return AnomalyScores(torch.stack(maps), torch.tensor(scores, device=grid.device))

    def held_out(
        self, good: Iterable[UInt8[np.ndarray, "_ _ 3"]], memory: PatchMemory
    ) -> Iterator[AnomalyScores]:
        """Each good image against the others, for a threshold: its own patches do not count.

        Args:
            good: the images that the memory was fitted on, in the same order.
            memory: what `fit` gave.

        Raises:
            ConfigError: the memory has no other image.
        """
        for index, image in enumerate(good):
            yield self([image], memory, without=index)


def turned(image: UInt8[np.ndarray, "H W 3"], degrees: float) -> UInt8[np.ndarray, "_ _ 3"]:
    """The image turned to the left about its middle; right angles are exact, others reflect at the border."""
    if degrees % 90 == 0:
        return np.ascontiguousarray(np.rot90(image, int(degrees // 90) % 4))
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    return cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REFLECT_101)


def foreground_cells(features: Float[Tensor, "C h w"], border: float = 0.2) -> Bool[Tensor, "h w"]:
    """Which cells show the thing: one side of the first principal component, that of the middle.

    It is the side that the middle has more of than the whole. Widened by one cell and closed, as AnomalyDINO
    does; everything where the features are all alike.

    Args:
        features: of one image.
        border: share of each side that is not the middle.
    """
    _, h, w = features.shape
    points = features.flatten(1).T.double()
    points = points - points.mean(dim=0)
    axis = torch.linalg.eigh(points.T @ points).eigenvectors[:, -1]
    along = (points @ axis).view(h, w)
    spread = float(along.max() - along.min())
    if spread < 1e-6:
        return torch.ones(h, w, dtype=torch.bool, device=features.device)
    bytes_ = ((along - along.min()) / spread * 255).round().to(torch.uint8).cpu().numpy()
    _, mask = cv2.threshold(bytes_, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    middle = mask[
        int(h * border) : max(int(h * (1 - border)), 1), int(w * border) : max(int(w * (1 - border)), 1)
    ]
    if middle.mean() < mask.mean():
        mask = 1 - mask
    kernel = np.ones((3, 3), np.uint8)
    mask = cv2.morphologyEx(cv2.dilate(mask, kernel), cv2.MORPH_CLOSE, kernel)
    return torch.from_numpy(mask.astype(bool)).to(features.device)


def _weights_hash(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
