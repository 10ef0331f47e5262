from __future__ import annotations

import numpy as np
import pytest
import torch
from support import random_bank

from ovseg.errors import ConfigError
from ovseg.heads import SegmentationHead
from ovseg.refine.region_voting import RegionVote, RegionVoting
from ovseg.resampling import Resampling
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures, Pictures

SIZE = (11, 17)


def score_map(batch: int = 2, **details: object) -> ScoreMap:
    generator = torch.Generator().manual_seed(3)
    cosine = torch.randn(batch, 7, 3, 5, generator=generator).tanh()
    return ScoreMap(cosine, random_bank(dim=4, **details), 20.0, Resampling.bilinear((3, 5), SIZE))


def features(*regions: np.ndarray) -> DenseFeatures:
    pictures = Pictures(torch.zeros(len(regions), 3, *SIZE), regions=tuple(regions))
    return DenseFeatures(
        torch.zeros(len(regions), 4, 3, 5), Resampling.bilinear((3, 5), SIZE), pictures=pictures
    )


def blocks(seed: int, lowest: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 4, (3, 4)), np.ones((4, 5), int))[:11, :17].astype(np.int32) + lowest


def slow_vote(regions, labels, confidence, unsegmented: int):
    labels, confidence = labels.copy(), confidence.copy()
    for region in set(regions.ravel().tolist()) - {unsegmented}:
        inside = regions == region
        values, counts = np.unique(labels[inside], return_counts=True)
        winner = values[counts.argmax()]
        agree = labels[inside] == winner
        confidence[inside] = (confidence[inside] * agree).sum() / inside.sum()
        labels[inside] = winner
    return labels, confidence


@pytest.mark.parametrize("background", [frozenset({0}), frozenset()])
@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("lowest", [0, 2])
def test_votes_follow_thresholds(lowest: int, as_published: bool, background: frozenset[int]) -> None:
    m = score_map(background=background)
    regions = [blocks(0, lowest), blocks(1, lowest)]
    head = SegmentationHead(threshold=0.9)  # many pixels are background, or void
    plain = head(m)
    voted = head(RegionVoting(as_published=as_published)(m, features(*regions)))
    for index, ids in enumerate(regions):
        unsegmented = int(ids.min()) if as_published else 0
        labels, confidence = slow_vote(ids, plain[index].labels, plain[index].confidence, unsegmented)
        assert (voted[index].labels == labels).all()
        np.testing.assert_allclose(voted[index].confidence, confidence, atol=1e-6)
        assert (labels != plain[index].labels).any()


def test_of_equally_many_the_smaller_label_wins() -> None:
    labels = torch.tensor([[4, 2, 7, 7], [2, 4, 1, 1]])
    regions = torch.tensor([[1, 1, 0, 0], [1, 1, 2, 2]])
    confidence = torch.full((2, 4), 0.8)
    voted, sure = RegionVote(regions)(score_map(1), labels, confidence)
    assert voted.tolist() == [[2, 2, 7, 7], [2, 2, 1, 1]]
    torch.testing.assert_close(sure, torch.tensor([[0.4, 0.4, 0.8, 0.8], [0.4, 0.4, 0.8, 0.8]]))


def test_labels_of_another_size() -> None:
    m, regions = score_map(1), np.repeat(np.array([[1], [2]], np.int32), 8, axis=1)
    voted = SegmentationHead()(RegionVoting()(m, features(regions)), (40, 60))[0].labels
    assert len(np.unique(voted[:20])) == len(np.unique(voted[20:])) == 1


def test_no_region_at_all_changes_nothing() -> None:
    m, head = score_map(1), SegmentationHead()
    voted = head(RegionVoting()(m, features(np.zeros(SIZE, np.int32))))[0]
    assert (voted.labels == head(m)[0].labels).all()
    assert (voted.confidence == head(m)[0].confidence).all()


def test_sam_finds_regions_where_none_came() -> None:
    class Sam(torch.nn.Module):
        def automatic_masks(self, image: np.ndarray, **options: object) -> list[dict]:
            return [{"segmentation": np.ones(image.shape[:2], bool), "area": image[..., 0].size}]

    m = score_map(2)
    pictures = Pictures(torch.rand(2, 3, *SIZE))
    without = DenseFeatures(torch.zeros(2, 4, 3, 5), m.resampling, pictures=pictures)
    for result in SegmentationHead()(RegionVoting(Sam())(m, without)):
        assert len(np.unique(result.labels)) == 1
    with pytest.raises(ConfigError, match="SAM"):
        RegionVoting()(m, without)
    with pytest.raises(ConfigError, match="without their pictures"):
        RegionVoting()(m, DenseFeatures(torch.zeros(2, 4, 3, 5), m.resampling))
