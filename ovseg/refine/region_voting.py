"""One class per region: every region takes the class that most of its pixels have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ovseg.regions import SAM_OPTIONS, UNSEGMENTED, regions_of, resize_regions
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures


class RegionVoting(nn.Module):
    """Each region votes on its class, after thresholds; pixels of no region keep theirs.

    Void and background are votes like any other; of equally many the smaller label wins. A voted pixel's
    confidence is the mean over its region, where pixels that voted otherwise count 0: a narrow vote is an
    unsure one.

    Source: CorrCLIP's map correction, Zhang et al., arXiv 2411.10086; github.com/zdk258/CorrCLIP
    at 103bc182, CorrCLIPv1/corrclip_segmentor.py.
    Deviations: id 0 is what no region covers; the code (`as_published=True`) takes the lowest id for it, also
    where that is a real region.

    Args:
        sam: a `SamEncoder` that finds regions where images came without; None: they must come with some.
        sam_options: of its mask generator, by default `ovseg.regions.SAM_OPTIONS`.
        as_published: see above.
    """

    def __init__(
        self,
        sam: nn.Module | None = None,
        *,
        sam_options: Mapping[str, Any] = SAM_OPTIONS,
        as_published: bool = False,
    ) -> None:
        super().__init__()
        self.sam: Any = sam
        self.sam_options = dict(sam_options)
        self.as_published = as_published

    def watch(self, features: DenseFeatures) -> DenseFeatures:
        """The features with the regions of their pictures, which no words change."""
        if features.pictures is None or features.pictures.regions:
            return features
        found = regions_of(features.pictures, self.sam, self.sam_options)
        return replace(features, pictures=replace(features.pictures, regions=found))

    def forward(self, score_map: ScoreMap, features: DenseFeatures) -> ScoreMap:
        """The score map with a vote for each image.

        Args:
            score_map: of the images.
            features: their pictures' regions are read, or SAM looks at the originals.

        Raises:
            ConfigError: there are neither regions nor SAM.
        """
        regions = regions_of(features.pictures, self.sam, self.sam_options)
        return score_map.revised([RegionVote(torch.from_numpy(each), self.as_published) for each in regions])


@dataclass(frozen=True)
class RegionVote:
    """The vote of one image's regions, ready for any labels.

    Attributes:
        regions: an id for each pixel; resized where labels have another size.
        as_published: see `RegionVoting`.
    """

    regions: Int[Tensor, "H W"]
    as_published: bool = False

    def __call__(
        self, score_map: ScoreMap, labels: Int[Tensor, "H W"], confidence: Float[Tensor, "H W"]
    ) -> tuple[Int[Tensor, "H W"], Float[Tensor, "H W"]]:
        """New labels and confidence."""
        regions = self.regions.to(labels.device)
        if regions.shape != labels.shape:
            regions = resize_regions(regions, (labels.shape[0], labels.shape[1]))
        ids, region = regions.unique(return_inverse=True)
        classes, vote = labels.unique(return_inverse=True)
        ballots = region * len(classes) + vote
        size = len(ids) * len(classes)
        counts = torch.bincount(ballots.flatten(), minlength=size).view(len(ids), -1)
        weight = torch.bincount(ballots.flatten(), confidence.flatten().double(), minlength=size)
        winner = counts.argmax(dim=1)
        sure = weight.view_as(counts).gather(1, winner[:, None])[:, 0] / counts.sum(dim=1)
        voted = regions != (ids[0] if self.as_published else UNSEGMENTED)
        return (
            torch.where(voted, classes[winner][region], labels),
            torch.where(voted, sure.to(confidence)[region], confidence),
        )
