"""SAM draws the outlines of objects that another head has found: a box each in, a mask each out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ovseg.detection_results import Detections
from ovseg.errors import ShapeError
from ovseg.heads.instances import check_shares
from ovseg.rle import encode_mask
from ovseg.sam_structures import SamImage

#: Boxes asked about at once: each has a mask at the image's size.
BOXES_AT_ONCE = 8


@torch.no_grad()
def redraw(
    detections: Detections,
    sam: Any,
    embedded: SamImage,
    index: int = 0,
    *,
    min_iou: float = 0.6,
    min_overlap: float = 0.5,
) -> Detections:
    """The same objects along SAM's masks, with boxes around those.

    SAM's single mask for a box is taken, where SAM trusts it and it overlaps enough; else the object stays as
    it was. A box leaves little open, so that the three masks for ambiguous prompts are not needed, as the
    documentation of segment_anything's predictor advises.

    Source: prompting SAM by a score map is CLIP Surgery's idea (Li et al., arXiv 2304.05653), by points.

    Args:
        detections: of one image; without masks their boxes count as such.
        sam: an `ovseg.encoders.sam.SamEncoder`.
        embedded: the images, as it has embedded them.
        index: which of them.
        min_iou: masks whose IoU SAM predicts to be lower are not used.
        min_overlap: masks with a lower IoU with the object's own are not used.

    Raises:
        ShapeError: the detections are of an image of another size.
    """
    check_shares(min_iou=min_iou, min_overlap=min_overlap)
    if detections.image_hw != tuple(embedded.image_hw):
        raise ShapeError(
            f"detections are of an image of {detections.image_hw} (H, W), SAM has seen one of "
            f"{embedded.image_hw}"
        )
    boxes = detections.boxes_xyxy.copy()
    masks = list(detections.masks or (encode_mask(detections.mask(each)) for each in range(len(detections))))
    height, width = detections.image_hw
    scale = torch.tensor([embedded.input_hw[1] / width, embedded.input_hw[0] / height] * 2)
    inclusive = torch.from_numpy(boxes - np.array([0, 0, 1, 1], np.float32)) * scale
    for start in range(0, len(boxes), BOXES_AT_ONCE):
        low_res, trust = sam.decode(
            embedded, index, boxes=inclusive[start : start + BOXES_AT_ONCE].float(), multimask=False
        )
        for place, picture in enumerate(sam.upscale(low_res, embedded)[:, 0] > 0, start=start):
            own = torch.from_numpy(detections.mask(place)).to(picture.device)
            overlap = float((picture & own).sum() / (picture | own).sum().clamp_min(1))
            if picture.any() and overlap >= min_overlap and float(trust[place - start, 0]) >= min_iou:
                drawn = picture.cpu().numpy()
                rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
                boxes[place] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
                masks[place] = encode_mask(drawn)
    return replace(detections, boxes_xyxy=boxes, masks=tuple(masks))
