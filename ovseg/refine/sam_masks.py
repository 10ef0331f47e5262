"""SAM draws the regions that a score map has found: prompts from labels, labels from masks.

Every connected region of a class becomes a prompt of three parts: its most probable pixel, its box, and the
class's probabilities as a coarse mask. Masks that SAM trusts take part again, weighted by the probabilities.

Source: Shi et al., Trident, arXiv 2411.09219, section 3; github.com/YuHengsss/Trident at a93b346d.
Deviations, all undone by `as_published=True`:
- the mask prompt has its batch axis (without it SAM's channel norm runs over the mask's height);
- prompts are mapped by the size that SAM's input really has, not by one computed anew from half the image;
- where a region's masks were all rejected and its own class is more probable than what other masks say, the
  first label stays. The code means to do so, but compares after it has overwritten what it compares with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ovseg.errors import ConfigError
from ovseg.sam_structures import SamImage, input_size
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures

#: Probabilities times this are the logits of a mask prompt.
MASK_PROMPT_SCALE = 0.005
#: Probabilities this close are equal, and the first pixel wins: at borders, where bilinear upsampling repeats
#: values, rounding would decide otherwise.
TIE = 1e-6


@dataclass(frozen=True)
class Prompt:
    """What SAM is asked about one class.

    Attributes:
        label: the class.
        points: the most probable pixel `(x, y)` of each region, in SAM's input frame.
        boxes: `(x0, y0, x1, y1)` of each region, in SAM's input frame.
        mask: logits, one picture for all regions, padded to a square.
        regions: which region a pixel belongs to, counted from 1, at half the image's size; 0: none.
    """

    label: int
    points: Float[Tensor, "N 1 2"]
    boxes: Float[Tensor, "N 4"]
    mask: Float[Tensor, "1 1 s s"]
    regions: Int[Tensor, "h w"]


@dataclass(frozen=True)
class Answer:
    """What SAM said about one class.

    Attributes:
        label: the class.
        masks: low-resolution logits of the masks that SAM trusts.
        rejected: where the regions lie whose masks it does not trust, at half the image's size.
    """

    label: int
    masks: Float[Tensor, "n 1 s s"]
    rejected: Bool[Tensor, "h w"]


class SamMasks(nn.Module):
    """Labels redrawn along SAM's masks.

    Args:
        sam: a `SamEncoder`; images are embedded here where the method has not done it.
        coarse_threshold: pixels of smaller probability prompt nothing (.05 for ADE20K and COCO-Stuff, .10 for
            Cityscapes, .15 for Context, .25 for COCO-Object).
        min_iou: masks whose IoU SAM predicts to be lower are not used.
        min_area_px: smaller regions are not asked about, in pixels of the image at half its size.
        as_published: see above.
    """

    def __init__(
        self,
        sam: Any,
        *,
        coarse_threshold: float = 0.2,
        min_iou: float = 0.8,
        min_area_px: int = 225,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= coarse_threshold <= 1:
            raise ConfigError(f"coarse_threshold is a probability between 0 and 1, got {coarse_threshold}")
        if min_area_px < 1:
            raise ConfigError(f"min_area_px must be at least 1 pixel, got {min_area_px}")
        self.sam = sam
        self.coarse_threshold = coarse_threshold
        self.min_iou = min_iou
        self.min_area_px = min_area_px
        self.as_published = as_published

    def watch(self, features: DenseFeatures) -> DenseFeatures:
        """The features with what SAM sees of the images, which no words change."""
        if features.sam is not None or features.pictures is None:
            return features
        return replace(features, sam=self.sam.embed(features.pictures.full))

    def forward(self, score_map: ScoreMap, features: DenseFeatures) -> ScoreMap:
        """The score map with one revision for each image.

        Raises:
            ConfigError: the features came without their pictures.
        """
        if features.sam is not None:
            seen = [(features.sam, index) for index in range(len(score_map))]
        elif features.pictures is not None:
            seen = [(self.sam.embed([image]), 0) for image in features.pictures.full]
        else:
            raise ConfigError("SAM looks at the image, and these features came without their pictures")
        return score_map.revised([partial(self.revise, *each) for each in seen])

    @torch.no_grad()
    def revise(
        self,
        embedded: SamImage,
        index: int,
        score_map: ScoreMap,
        labels: Int[Tensor, "H W"],
        confidence: Float[Tensor, "H W"],
    ) -> tuple[Int[Tensor, "H W"], Float[Tensor, "H W"]]:
        """New labels, and how sure they are: probability of the class times that of the mask.

        Args:
            embedded: the batch that the image belongs to.
            index: its place there.
            score_map: of this image alone.
            labels: as a head has decided them.
            confidence: their probabilities.
        """
        answers = [self.ask(embedded, index, each) for each in self.prompts(embedded, score_map, labels)]
        best, best_label = torch.zeros_like(confidence), labels
        for label, score in self.scores(embedded, score_map, answers, labels.shape):
            better = score > best
            best, best_label = torch.where(better, score, best), torch.where(better, label, best_label)
        revised = best > 0
        if not self.as_published:
            for answer in answers:
                revised &= ~(_nearest(answer.rejected, labels.shape) & (confidence > best))
        return torch.where(revised, best_label, labels), torch.where(revised, best, confidence)

    def prompts(self, embedded: SamImage, score_map: ScoreMap, labels: Int[Tensor, "H W"]) -> list[Prompt]:
        """What to ask, class by class.

        Args:
            embedded: the image, for its size in SAM's input frame.
            score_map: of this image alone.
            labels: as a head has decided them.
        """
        half_hw = (max(labels.shape[0] // 2, 1), max(labels.shape[1] // 2, 1))
        small = _nearest(labels, half_hw)
        counts = torch.bincount(small.flatten(), minlength=len(score_map.bank.names))
        highest = torch.zeros(half_hw, device=labels.device)
        pictures: dict[int, Tensor] = {}
        for classes, part in score_map.class_pictures(0, (labels.shape[0], labels.shape[1])):
            halves = F.interpolate(part[None], size=half_hw, mode="bilinear", align_corners=False)[0]
            highest = torch.maximum(highest, halves.amax(dim=0))
            for label, picture in zip(classes.tolist(), halves, strict=True):
                if counts[label] >= self.min_area_px and picture.max() >= self.coarse_threshold:
                    pictures[label] = picture
        sure = highest >= self.coarse_threshold
        asked = (
            self._prompt(embedded, label, (small == label) & sure, picture)
            for label, picture in pictures.items()
        )
        return [each for each in asked if each is not None]

    def ask(self, embedded: SamImage, index: int, prompt: Prompt) -> Answer:
        """SAM's masks for the regions of one class."""
        masks, quality = self.sam.decode(
            embedded,
            index,
            points=prompt.points,
            boxes=prompt.boxes,
            masks=prompt.mask,
            as_published=self.as_published,
        )
        trusted = quality[:, 0] > self.min_iou
        rejected = torch.isin(prompt.regions, (~trusted).nonzero()[:, 0].to(prompt.regions) + 1)
        return Answer(prompt.label, masks[trusted], rejected)

    def scores(
        self, embedded: SamImage, score_map: ScoreMap, answers: list[Answer], size_hw: tuple[int, ...]
    ) -> Iterator[tuple[int, Float[Tensor, "H W"]]]:
        """`max_masks sigmoid(logit) * probability` where any mask is, else 0, of every class with masks."""
        masks = {answer.label: answer.masks for answer in answers if len(answer.masks)}
        if not masks:
            return
        for classes, part in score_map.class_pictures(0, (size_hw[0], size_hw[1])):
            for label, probability in zip(classes.tolist(), part, strict=True):
                if label in masks:
                    # one at a time; where any logit is above 0, so is the highest, and it has the best score
                    logit = probability.new_full(probability.shape, -torch.inf)
                    for low_res in masks[label].split(1):
                        logit = torch.maximum(logit, self.sam.upscale(low_res, embedded, size_hw)[0, 0])
                    yield label, torch.where(logit > 0, logit.sigmoid() * probability, 0)

    def _prompt(
        self,
        embedded: SamImage,
        label: int,
        where: Bool[Tensor, "h w"],
        probability: Float[Tensor, "h w"],
    ) -> Prompt | None:
        half_hw = (probability.shape[0], probability.shape[1])
        regions, boxes, points = _regions(where.cpu().numpy(), probability.cpu().numpy(), self.min_area_px)
        if not len(boxes):
            return None
        input_hw = embedded.input_hw
        if self.as_published:
            input_hw = input_size(half_hw, max(embedded.input_hw))
        scale = torch.tensor([input_hw[1] / half_hw[1], input_hw[0] / half_hw[0]])
        side = 4 * embedded.embedding.shape[-1]
        size_hw = input_size(half_hw, side)
        picture = F.interpolate(probability[None, None], size=size_hw, mode="bilinear", align_corners=False)
        picture = torch.where(picture > self.coarse_threshold, picture * MASK_PROMPT_SCALE, 0)
        mask = F.pad(picture, (0, side - size_hw[1], 0, side - size_hw[0]))
        return Prompt(
            label,
            points=(torch.from_numpy(points) * scale)[:, None],
            boxes=torch.from_numpy(boxes) * scale.repeat(2),
            mask=mask,
            regions=torch.from_numpy(regions).to(probability.device),
        )


def _regions(
    where: Bool[np.ndarray, "h w"], probability: Float[np.ndarray, "h w"], min_area_px: int
) -> tuple[Int[np.ndarray, "h w"], Float[np.ndarray, "N 4"], Float[np.ndarray, "N 2"]]:
    """8-connected regions that are large enough: their numbers from 1, boxes and most probable pixels."""
    count, ids, stats, _ = cv2.connectedComponentsWithStats(where.astype(np.uint8), connectivity=8)
    large = [each for each in range(1, count) if stats[each, cv2.CC_STAT_AREA] >= min_area_px]
    numbers = np.zeros(count, np.int64)
    numbers[large] = np.arange(len(large)) + 1
    boxes, points = np.empty((len(large), 4), np.float32), np.empty((len(large), 2), np.float32)
    for row, each in enumerate(large):
        x, y, width, height = stats[each, : cv2.CC_STAT_AREA]
        crop = slice(y, y + height), slice(x, x + width)
        inside = np.where(ids[crop] == each, probability[crop], -1)
        first = (inside >= inside.max() - TIE).argmax()
        top, left = np.unravel_index(first, inside.shape)
        boxes[row] = x, y, x + width - 1, y + height - 1
        points[row] = x + left, y + top
    return numbers[ids], boxes, points


def _nearest(picture: Tensor, size_hw: tuple[int, ...]) -> Tensor:
    return F.interpolate(picture[None, None].float(), size=tuple(size_hw), mode="nearest")[0, 0].to(
        picture.dtype
    )
