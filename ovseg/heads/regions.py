"""Words for given regions: boxes or masks, classified by the dense features inside; attributes; phrases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ovseg.detection_results import Detections
from ovseg.errors import ConfigError, ShapeError
from ovseg.heads.detection import suppress
from ovseg.heads.instances import check_shares
from ovseg.resampling import Resampling, tile_elements
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures, TextBank


def pool_regions(
    grid: Float[Tensor, "C h w"], resampling: Resampling, regions: Detections
) -> Float[Tensor, "N C"]:
    """The mean over each region of the picture that a grid becomes, without making that picture.

    The picture is `R grid C^T`, so the mean over a mask M is the sum of the grid weighted by `R^T M C / |M|`.

    Args:
        grid: of features, or of cosines.
        resampling: from the grid to a picture.
        regions: masks, or boxes where there are none, which count by the share of a pixel that they cover.
            One without a pixel has the mean 0.
    """
    resampling = resampling.then(regions.image_hw).to(grid.device)
    rows, cols = resampling.rows.float(), resampling.cols.float()
    height, width = regions.image_hw
    at_once = max(4 * tile_elements(grid.device) // (height * width), 1)
    boxes = torch.from_numpy(regions.boxes_xyxy).to(grid.device)
    pooled = []
    for start in range(0, len(regions), at_once):
        part = range(start, min(start + at_once, len(regions)))
        if regions.masks is None:
            across = _covered(boxes[part.start : part.stop, 0::2], width)
            down = _covered(boxes[part.start : part.stop, 1::2], height)
            weights = (down @ rows)[:, :, None] * (across @ cols)[:, None]
            area = down.sum(dim=1) * across.sum(dim=1)
        else:
            masks = torch.from_numpy(np.stack([regions.mask(each) for each in part])).to(grid.device).float()
            weights, area = rows.T @ masks @ cols, masks.sum(dim=(1, 2))
        weights = weights / area.clamp_min(1e-6)[:, None, None]
        pooled.append(weights.flatten(1) @ grid.float().flatten(1).T)
    return torch.cat(pooled) if pooled else grid.new_zeros((0, grid.shape[0]), dtype=torch.float32)


def _covered(spans: Float[Tensor, "N 2"], length: int) -> Float[Tensor, "N length"]:
    """The share of each pixel between two edges."""
    pixels = torch.arange(length, device=spans.device)
    return (torch.minimum(spans[:, 1:], pixels + 1) - torch.maximum(spans[:, :1], pixels)).clamp(0, 1)


def ensemble(
    dense: Float[Tensor, "*shape"],
    crops: Float[Tensor, "*shape"],
    weight: float,
    *,
    as_published: bool = False,
) -> Float[Tensor, "*shape"]:
    """`dense^(1 - l) crops^l`, not renormalised.

    Source: OVSeg, Liang et al., arXiv 2210.04150.

    Args:
        dense, crops: probabilities.
        weight: l; 0 is the dense half alone, 1 the crops alone.
        as_published: 0 means the crops alone, as in github.com/facebookresearch/ov-seg at 36f49d49 (whose
            demo is set so).
    """
    if as_published and weight == 0:
        return crops
    return dense ** (1 - weight) * crops**weight


class RegionHead(nn.Module):
    """Classifies proposals, such as SAM's automatic masks or another detector's boxes.

    Source: `p = p_dense^(1 - l) p_crop^l` is OVSeg's (Liang et al., arXiv 2210.04150, where l is 0.7 for
    ADE20K, 0.6 for Context and 0.45 for VOC); its dense half is a trained head, here pooled features.

    Args:
        threshold: regions whose best class is less probable are left out; a class's own comes first.
        crop_weight: l, where crops come along.
        nms_iou, part_share, max_detections: see `DetectionHead`.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.0,
        crop_weight: float = 0.7,
        nms_iou: float = 0.5,
        part_share: float = 1.0,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        check_shares(threshold=threshold, crop_weight=crop_weight, nms_iou=nms_iou, part_share=part_share)
        if max_detections < 1:
            raise ConfigError(f"max_detections must be at least 1, got {max_detections}")
        self.threshold = threshold
        self.crop_weight = crop_weight
        self.nms_iou = nms_iou
        self.part_share = part_share
        self.max_detections = max_detections

    def forward(
        self,
        score_map: ScoreMap,
        proposals: Sequence[Detections],
        *,
        features: DenseFeatures | None = None,
        crops: Sequence[Float[Tensor, "N D"]] | None = None,
    ) -> list[Detections]:
        """One result per image, the surest regions first; those that are background are left out.

        A score is the probability of the class times the proposal's own score.

        Args:
            score_map: of a batch.
            proposals: for each image.
            features: behind the map: then features are averaged and compared with the words, else the map's
                cosines are averaged (and so is whatever a method has made of them).
            crops: for each image CLIP's embedding of each region's picture, unit length (`masked_crops`,
                `blur_reverse_masks`).

        Raises:
            ShapeError: there are not as many proposals or crops as images.
        """
        for what, given in (("proposals", proposals), ("crops", crops)):
            if given is not None and len(given) != len(score_map):
                raise ShapeError(f"{len(score_map)} images came with {what} of {len(given)}: one for each")
        return [
            self._classify(score_map, index, each, features, None if crops is None else crops[index].float())
            for index, each in enumerate(proposals)
        ]

    def _classify(
        self,
        score_map: ScoreMap,
        index: int,
        proposals: Detections,
        features: DenseFeatures | None,
        crops: Tensor | None,
    ) -> Detections:
        bank = score_map.bank
        if not len(proposals):
            return Detections.empty(bank.names, proposals.image_hw, masks=proposals.masks is not None)
        if features is None:
            cosine = pool_regions(score_map.cosine[index], score_map.resampling, proposals)
        else:
            vectors = pool_regions(features.grid[index], features.resampling, proposals)
            cosine = F.normalize(vectors, dim=1) @ bank.embeddings.T
        probability = score_map.class_probabilities(score_map.temperature * cosine.T)
        if crops is not None:
            seen = score_map.class_probabilities(score_map.temperature * bank.embeddings @ crops.T)
            probability = ensemble(probability, seen, self.crop_weight)
        best, which = (each.cpu().numpy() for each in probability.max(dim=0))
        own = bank.thresholds or (None,) * len(bank.names)
        limits = np.array([self.threshold if each is None else each for each in own], np.float32)
        likely = np.flatnonzero((best >= limits[which]) & ~np.isin(which, list(bank.background)))
        chosen = replace(proposals.select(likely), names=bank.names, labels=which[likely])
        chosen = replace(chosen, scores=best[likely] * chosen.scores)
        kept = suppress(
            chosen.boxes_xyxy,
            chosen.scores,
            chosen.labels,
            nms_iou=self.nms_iou,
            part_share=self.part_share,
            max_detections=self.max_detections,
        )
        return chosen.select(kept)


def describe(
    detections: Detections,
    features: DenseFeatures,
    attributes: TextBank,
    *,
    index: int = 0,
    temperature: float = 40.0,
) -> Detections:
    """The same objects with a probability for each attribute, any number of which may hold.

    `p = sigmoid(temperature * (cosine - reference))`; the reference is the best background word of the
    attributes ("a photo of something"), or the mean over all attributes where there is none: cosines of CLIP
    have no zero, they all lie within a few hundredths. A single attribute without background has 0.5.

    Source: a second vocabulary for attributes, scored independently, is OvarNet's (Chen et al., CVPR 2023).
    Deviations: no training, so the region is the mean of dense features, and the reference is ours.

    Args:
        detections: of one image.
        features: of the batch.
        attributes: encoded, say with the template "a photo of something that is {}".
        index: the image's place in the batch.
        temperature: logit scale.
    """
    vectors = F.normalize(pool_regions(features.grid[index], features.resampling, detections), dim=1)
    cosine = vectors @ attributes.embeddings.to(vectors).T
    best = torch.stack([cosine[:, queries].amax(dim=1) for queries in attributes.queries_of_class], dim=1)
    background = sorted(attributes.background)
    shown = [k for k in range(len(attributes.names)) if k not in attributes.background]
    if background:
        reference = best[:, background].amax(dim=1, keepdim=True)
    else:
        reference = best.mean(dim=1, keepdim=True)
    probability = torch.sigmoid(temperature * (best[:, shown] - reference))
    return replace(
        detections,
        attributes=probability.cpu().numpy(),
        attribute_names=tuple(attributes.names[k] for k in shown),
    )


def phrase_heat(
    score_map: ScoreMap, label: int, *, index: int = 0, size_hw: tuple[int, int] | None = None
) -> Float[Tensor, "H W"]:
    """Where a phrase fits, in [0, 1]: its probability against the bank's other classes.

    A phrase alone is its cosine instead, from 0 at the lowest pixel to 1 at the highest; 0 on a flat map.
    """
    size_hw = size_hw or score_map.image_hw
    if len(score_map.bank.names) > 1:
        for classes, pictures in score_map.class_pictures(index, size_hw):
            if label in classes:
                return pictures[classes.tolist().index(label)]
        raise ConfigError(f"no class {label}: the bank has {len(score_map.bank.names)}")
    heat = score_map.pictures(index, score_map.cosine[index].float(), size_hw).amax(dim=0)
    low, high = heat.aminmax()
    return (heat - low) / (high - low).clamp_min(1e-6)


def refer(
    heat: Float[Tensor, "H W"], proposals: Detections, phrase: str, *, area_power: float = 0.5
) -> Detections:
    """The one region that a phrase means: `argmax of (heat inside) / area^0.5 * the proposal's score`.

    Source: GroundVLP's fusion, Shen et al., arXiv 2312.15043; github.com/om-ai-lab/GroundVLP at f13e9d24,
    whose heat is a Grad-CAM over boxes.
    Deviations: the heat is a score map; masks count where there are any.

    Args:
        heat: see `phrase_heat`, at the proposals' image size.
        proposals: of one image.
        phrase: the result's class name.
        area_power: 0.5 as published; 0 takes the sum, 1 the mean.

    Returns:
        One object, or none where there is no proposal; its score is the mean heat inside times the
        proposal's.
    """
    if tuple(heat.shape) != tuple(proposals.image_hw):
        raise ShapeError(
            f"the heat map is {tuple(heat.shape)} and the proposals are of an image of {proposals.image_hw}"
        )
    found = replace(proposals, names=(phrase,), labels=np.zeros(len(proposals), np.int64))
    if not len(proposals):
        return found
    identity = Resampling(torch.eye(heat.shape[0]), torch.eye(heat.shape[1]))
    mean = pool_regions(heat[None], identity, proposals)[:, 0].cpu().numpy()
    area = np.array([max(_area(proposals, each), 1e-6) for each in range(len(proposals))])
    best = int(np.argmax(mean * area ** (1 - area_power) * proposals.scores))
    return replace(found, scores=(mean * proposals.scores).astype(np.float32)).select(np.array([best]))


def _area(regions: Detections, index: int) -> float:
    if regions.masks is not None:
        return float(regions.mask(index).sum())
    left, top, right, bottom = regions.boxes_xyxy[index].tolist()
    return (right - left) * (bottom - top)
