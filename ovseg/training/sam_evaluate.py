"""Figures of the bundled SAM on scenes that it was not trained on."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor

from ovseg.scenes import Scene, SceneSet
from ovseg.training.clip_batches import scene_regions
from ovseg.training.sam_batches import MIN_BACKGROUND_PX, SMALL_MASK, Prompts, box_of
from ovseg.training.sam_pretrain import decode, preprocess

SIZES_HW = ((224, 224), (168, 224), (224, 160))


def centre_of(mask: np.ndarray) -> tuple[int, int]:
    """Column and row of the pixel furthest from the mask's border (and the image's)."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x) - 1, int(y) - 1


def segments_of(scene: Scene, classes: tuple[str, ...]) -> tuple[np.ndarray, int]:
    """(K, H, W) bool masks of a scene's objects, then of its larger backgrounds; and how many are objects."""
    regions, names = scene_regions(scene, classes)
    masks = [regions == number for number in range(len(names))]
    objects = len(scene.names)
    return np.stack(masks[:objects] + [m for m in masks[objects:] if m.sum() >= MIN_BACKGROUND_PX]), objects


def answers(sam: Sam, embedding: Tensor, prompts: Prompts, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(K, 1 + M, H, W) bool masks of one image at its own size, and (K, 1 + M) predicted IoU."""
    logits, predicted = decode(sam, embedding, prompts)
    return sam.postprocess_masks(logits, size_hw, size_hw) > 0, predicted


def iou_of(found: Tensor, truth: Tensor) -> Tensor:
    """(K,) IoU of (K, H, W) bool masks."""
    return (found & truth).sum((1, 2)) / (found | truth).sum((1, 2)).clamp(min=1)


def patch_probabilities(truth: Tensor, side: int, mask_side: int, patch: int = 16) -> Tensor:
    """(K, H, W) bool -> (K, 1, mask_side, mask_side): what a perfect score map of 16 px patches would give.

    Padded to `side`, in the range that Trident's mask prompts have.
    """
    padded = F.pad(truth[:, None].float(), (0, side - truth.shape[2], 0, side - truth.shape[1]))
    shape = (mask_side, mask_side)
    return SMALL_MASK * F.interpolate(F.avg_pool2d(padded, patch), shape, mode="bilinear")


@torch.no_grad()
def evaluate(sam: Sam, split: str, *, scenes: int = 32, seed: int = 0) -> dict[str, float]:
    """Mean IoU at full size, over all segments of the scenes.

    Args:
        sam: in eval mode.
        split: of `ovseg.scenes`; "unseen" has glyphs that training never shows.
        scenes: how many.
        seed: which.

    Returns:
        For objects "box" (true box), "point" (innermost pixel), "point_best" (of the three multi-mask
        outputs the one that the model rates best), "all" (point, box and `patch_probabilities`); "ground"
        (innermost pixel) for backgrounds; "box_itself" (the box taken as the mask); "iou_error" (mean
        absolute error of the IoU predicted for boxes).
    """
    drawn = SceneSet(split, seed, length=scenes)
    found: dict[str, list[Tensor]] = {}
    for index in range(scenes):
        size_hw = SIZES_HW[index % len(SIZES_HW)]
        scene = drawn.render(index, size_hw)
        masks, objects = segments_of(scene, drawn.classes)
        truth = torch.from_numpy(masks)
        boxes = torch.from_numpy(np.stack([box_of(mask) for mask in masks]))
        centres = torch.tensor([centre_of(mask) for mask in masks], dtype=torch.float32)[:, None]
        embedding = sam.image_encoder(preprocess(sam, torch.from_numpy(scene.image).permute(2, 0, 1)[None]))
        by_box, rated = answers(sam, embedding, Prompts(boxes=boxes), size_hw)
        ones = torch.ones(len(masks), 1)
        by_point, point_rated = answers(sam, embedding, Prompts(points=(centres, ones)), size_hw)
        sides = sam.image_encoder.img_size, sam.prompt_encoder.mask_input_size[0]
        every = Prompts((centres, ones), boxes, patch_probabilities(truth, *sides))
        by_all, _ = answers(sam, embedding, every, size_hw)
        best = by_point[torch.arange(len(masks)), 1 + point_rated[:, 1:].argmax(1)]
        filled = torch.zeros_like(truth)
        for place, (x0, y0, x1, y1) in enumerate(boxes.int().tolist()):
            filled[place, y0:y1, x0:x1] = True
        box, point = iou_of(by_box[:, 0], truth), iou_of(by_point[:, 0], truth)
        rows = {
            "box": box[:objects],
            "point": point[:objects],
            "point_best": iou_of(best, truth)[:objects],
            "all": iou_of(by_all[:, 0], truth)[:objects],
            "ground": point[objects:],
            "box_itself": iou_of(filled, truth)[:objects],
            "iou_error": (rated[:, 0] - box).abs()[:objects],
        }
        for name, values in rows.items():
            found.setdefault(name, []).append(values)
    return {name: float(torch.cat(values).mean()) for name, values in found.items()}
