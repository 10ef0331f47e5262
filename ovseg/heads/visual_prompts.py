"""Pictures that point CLIP at a region: the rest blurred, or the region cut out."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageFilter

from ovseg.detection_results import Detections

#: CLIP's mean colour, which normalisation turns to zero.
CLIP_MEAN_RGB = (123, 117, 104)


def blur_reverse_masks(
    image: UInt8[np.ndarray, "H W 3"], regions: Detections, *, side: int, std_px: float = 100.0
) -> Iterator[UInt8[np.ndarray, "side side 3"]]:
    """The image blurred outside of a region: `M * I + (1 - M) * Gauss(I)`, one picture for each region.

    Source: FGVP, Yang et al., arXiv 2306.04356; github.com/ylingfeng/FGVP at 80b067b2, blur_mask with the
    preprocessing "resize": long side to `side`, then stretched to a square.
    Deviations: bytes are rounded once more, after stretching.

    Args:
        image: RGB.
        regions: with masks; without, their boxes count.
        side: of CLIP's input in pixels.
        std_px: of Pillow's Gaussian, in pixels after the resize.
    """
    factor = side / max(image.shape[:2])
    size_wh = max(int(image.shape[1] * factor + 0.5), 1), max(int(image.shape[0] * factor + 0.5), 1)
    small = Image.fromarray(image).resize(size_wh, Image.Resampling.BILINEAR)
    blurred = small.filter(ImageFilter.GaussianBlur(std_px))
    for index in range(len(regions)):
        mask = cv2.resize(regions.mask(index).astype(np.float32), size_wh, interpolation=cv2.INTER_LINEAR) > 0
        picture = np.where(mask[..., None], np.asarray(small), np.asarray(blurred))
        yield cv2.resize(picture, (side, side), interpolation=cv2.INTER_LINEAR)


def masked_crops(
    image: UInt8[np.ndarray, "H W 3"],
    regions: Detections,
    *,
    side: int = 224,
    fill_rgb: tuple[int, int, int] = CLIP_MEAN_RGB,
) -> Iterator[tuple[UInt8[np.ndarray, "side side 3"], Bool[np.ndarray, "side side"]]]:
    """Each region's tight box, all else in it painted over, and where the region is in that picture.

    The second says which patches a mask-prompt-tuned CLIP keeps.

    Source: OVSeg, Liang et al., arXiv 2210.04150; github.com/facebookresearch/ov-seg at 36f49d49.

    Args:
        image: RGB.
        regions: with masks; without, their boxes count.
        side: of CLIP's input in pixels; bicubic, the mask nearest.
        fill_rgb: what all else becomes.
    """
    for index in range(len(regions)):
        left, top, right, bottom = np.round(regions.boxes_xyxy[index]).astype(int).tolist()
        crop = slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))
        mask = regions.mask(index)[crop]
        picture = np.where(mask[..., None], image[crop], np.array(fill_rgb, np.uint8))
        resized = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        where = cv2.resize(mask.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST_EXACT)
        yield np.asarray(resized), where > 0
