"""Batches for the bundled SAM: drawn scenes, segments of them, and prompts that ask for those segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovseg.scenes import SceneSet, SceneSettings
from ovseg.training.clip_batches import patch_shares, scene_regions

# A smaller piece of background is not asked for.
MIN_BACKGROUND_PX = 100
# What one image is asked with, and how often.
PROMPTS = {"point": 0.4, "box": 0.3, "point and box": 0.2, "two points": 0.1}
MASK_SHARE = 0.25
# Probabilities become mask prompts of this size in Trident (Shi et al., 2024; official repo at a93b346d).
SMALL_MASK = 0.005


@dataclass(frozen=True)
class Prompts:
    """What SAM's prompt encoder is called with: K prompts for one image, in px of the padded input.

    Attributes:
        points: (K, P, 2) x and y and (K, P) labels, 1 inside and 0 outside; or None.
        boxes: (K, 4) xyxy or None.
        masks: (K, 1, 4g, 4g) logits on four times the embedding's grid, or None.
    """

    points: tuple[Tensor, Tensor] | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None


@dataclass(frozen=True)
class SamBatch:
    """One training batch: B images of one size, K segments each.

    Attributes:
        images: (B, 3, H, W) uint8 RGB.
        truths: (B, K, H, W) bool, the segments asked for.
        prompts: one entry per image, for its K segments in order.
        share: (B, R, N) float32, how much of a patch each region covers; 0 on padding. N = g * g.
    """

    images: Tensor
    truths: Tensor
    prompts: list[Prompts]
    share: Tensor


class SamBatches:
    """Batches of scenes by number: batch k of equal arguments is always the same.

    Args:
        seed: of scenes, segments and prompts.
        batch: images in a batch.
        segments: K, prompts an image; segments repeat, with other prompts, where a scene has fewer.
        sizes_hw: image sizes in turn, px, multiples of the patch size, no side longer than `side`.
        side: SAM's input side, px.
        patch: patch side, px.
        settings: how scenes are drawn.
        split: scenes of this split.
    """

    def __init__(
        self,
        *,
        seed: int,
        batch: int,
        segments: int,
        sizes_hw: Sequence[tuple[int, int]],
        side: int,
        patch: int,
        settings: SceneSettings | None = None,
        split: str = "train",
    ) -> None:
        self.scenes = SceneSet(split, seed, length=1, settings=settings)
        self.seed, self.batch, self.segments = seed, batch, segments
        self.sizes_hw, self.side, self.patch = sizes_hw, side, patch

    def __getitem__(self, number: int) -> SamBatch:
        height, width = self.sizes_hw[number % len(self.sizes_hw)]
        rng = np.random.default_rng([self.seed, number])
        grid = self.side // self.patch
        images, truths, prompts, shares = [], [], [], []
        for index in range(number * self.batch, (number + 1) * self.batch):
            scene = self.scenes.render(index, (height, width))
            regions, names = scene_regions(scene, self.scenes.classes)
            chosen = choose_segments(regions, len(scene.names), len(names), self.segments, rng)
            masks = np.stack([regions == region for region in chosen])
            share, _ = patch_shares(regions, scene.defects, self.patch, len(names))
            cells = torch.from_numpy(share).unflatten(1, (height // self.patch, width // self.patch))
            images.append(torch.from_numpy(scene.image))
            truths.append(torch.from_numpy(masks))
            prompts.append(draw_prompts(masks, self.side, 4 * grid, rng))
            shares.append(F.pad(cells, (0, grid - cells.shape[2], 0, grid - cells.shape[1])).flatten(1))
        most = max(len(share) for share in shares)
        return SamBatch(
            images=torch.stack(images).permute(0, 3, 1, 2).contiguous(),
            truths=torch.stack(truths),
            prompts=prompts,
            share=torch.stack([F.pad(share, (0, 0, 0, most - len(share))) for share in shares]),
        )


def choose_segments(
    regions: np.ndarray, objects: int, count: int, wanted: int, rng: np.random.Generator
) -> np.ndarray:
    """(wanted,) region numbers: every background of some size, and objects; repeated where too few.

    Args:
        regions: (H, W) int, objects before backgrounds.
        objects: how many of the regions are objects.
        count: how many regions there are.
        wanted: how many to give.
        rng: draws them.
    """
    areas = np.bincount(regions.ravel(), minlength=count)
    grounds = np.flatnonzero(areas[objects:] >= MIN_BACKGROUND_PX) + objects
    pool = np.concatenate([grounds, rng.permutation(objects)])
    if not len(pool):
        pool = np.array([areas.argmax()])
    return np.resize(pool, wanted)


def draw_prompts(masks: np.ndarray, side: int, mask_side: int, rng: np.random.Generator) -> Prompts:
    """Prompts of one kind for the segments of one image.

    Args:
        masks: (K, H, W) bool, none empty.
        side: SAM's input side, px.
        mask_side: side of a mask prompt.
        rng: draws the kind and the prompts.
    """
    kind = rng.choice(list(PROMPTS), p=list(PROMPTS.values()))
    points = boxes = coarse = None
    if kind != "box":
        drawn = [_points(mask, 2 if kind == "two points" else 1, rng) for mask in masks]
        points = (
            torch.from_numpy(np.stack([xy for xy, _ in drawn])),
            torch.from_numpy(np.stack([labels for _, labels in drawn])),
        )
    if kind in ("box", "point and box"):
        boxes = torch.from_numpy(np.stack([jittered_box(mask, rng) for mask in masks]))
    if rng.random() < MASK_SHARE:
        coarse = coarse_masks(torch.from_numpy(masks), side, mask_side, rng)
    return Prompts(points, boxes, coarse)


def _points(mask: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) float32 x, y and (P,) float32 labels: the first inside, a second one inside or outside."""
    places, labels = [rng.choice(np.flatnonzero(mask))], [1.0]
    if count == 2:
        outside = np.flatnonzero(~mask)
        inside = len(outside) == 0 or rng.random() < 0.5
        places.append(rng.choice(np.flatnonzero(mask) if inside else outside))
        labels.append(float(inside))
    rows, columns = np.divmod(np.array(places), mask.shape[1])
    return np.stack([columns, rows], 1).astype(np.float32), np.array(labels, np.float32)


def box_of(mask: np.ndarray) -> np.ndarray:
    """(4,) float32 xyxy px, the far edges exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def jittered_box(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask's box, its edges off by a tenth of its sides (SD), inside the image and at least 2 px wide."""
    x0, y0, x1, y1 = box_of(mask)
    sides = np.array([x1 - x0, y1 - y0] * 2)
    noise = np.clip(rng.standard_normal(4) * 0.1 * sides, -0.2 * sides, 0.2 * sides)
    x0, y0, x1, y1 = np.array([x0, y0, x1, y1]) + noise
    height, width = mask.shape
    x0, y0 = np.clip(x0, 0, width - 2), np.clip(y0, 0, height - 2)
    return np.array([x0, y0, np.clip(x1, x0 + 2, width), np.clip(y1, y0 + 2, height)], np.float32)


def coarse_masks(masks: Tensor, side: int, mask_side: int, rng: np.random.Generator) -> Tensor:
    """Truth made as bad as a mask prompt: coarse, blurred, too large or too small, with wrong patches.

    Half are logits, as SAM's own output is fed back; half are probabilities times `SMALL_MASK`.

    Args:
        masks: (K, H, W) bool.
        side: SAM's input side, px; the masks are padded to it.
        mask_side: side of the result.
        rng: draws coarseness and errors, the same for all of one image but for the wrong patches.

    Returns:
        (K, 1, mask_side, mask_side) float32.
    """
    height, width = masks.shape[-2:]
    truth = F.pad(masks[:, None].float(), (0, side - width, 0, side - height))
    cells = max(1, mask_side // int(rng.choice([2, 4, 8, 16])))
    wrong = torch.from_numpy(rng.standard_normal((len(masks), 1, 7, 7)).astype(np.float32))
    shape = (mask_side, mask_side)
    coarse = F.interpolate(F.adaptive_avg_pool2d(truth, cells), shape, mode="bilinear", align_corners=False)
    wrong = F.interpolate(wrong, shape, mode="bilinear", align_corners=False)
    soft = (coarse + rng.uniform(0.0, 0.3) * wrong).clamp(0, 1)
    cut, steepness, small = rng.uniform(0.3, 0.7), rng.uniform(6, 30), rng.random() < 0.5
    return SMALL_MASK * soft if small else (soft - cut) * steepness
