"""Correlation within regions against slow loops written from the formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ovseg.correlation.regions import PADDING, connected, merge_regions, region_softmax


def unit(count: int, channels: int = 6, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, channels, generator=generator), dim=1)


def slow_attention(
    similarity: torch.Tensor, ids: list[int], sharpness: float, *, as_published: bool
) -> torch.Tensor:
    mean = float(similarity.mean())
    unsegmented = min(ids) if as_published else 0
    rows = []
    for i, a in enumerate(ids):
        weights = []
        for j, b in enumerate(ids):
            value = float(similarity[i, j])
            loose = unsegmented in (a, b) and value > mean
            if not as_published and PADDING in (a, b):
                loose = False
            allowed = i == j or loose or (a == b and a != unsegmented)
            weights.append(math.exp(sharpness * value) if allowed else 0.0)
        rows.append([weight / sum(weights) for weight in weights])
    return torch.tensor(rows)


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("ids", [[0, 0, 3, 3, 9, 9, 9, 0, -1, -1], [4, 4, 7, 4, 7, 7, 8, 8, 8, 8], [0] * 10])
def test_region_softmax_equals_the_formula(ids: list[int], as_published: bool) -> None:
    features = unit(10)
    similarity = (features @ features.T)[None]
    ours = region_softmax(similarity, torch.tensor([ids]), sharpness=4.0, as_published=as_published)
    torch.testing.assert_close(ours[0], slow_attention(similarity[0], ids, 4.0, as_published=as_published))


def test_no_window_depends_on_another_and_flat_ones_are_finite() -> None:
    features = torch.stack([unit(8, seed=1), unit(8, seed=2), torch.full((8, 6), 6**-0.5)])
    similarity = features @ features.mT
    ids = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 0], [3, 3, 3, 5, 5, 5, 5, 3], [0, 0, 0, 0, 1, 1, 1, 1]])
    together = region_softmax(similarity, ids)
    assert together.isfinite().all()
    torch.testing.assert_close(together.sum(-1), torch.ones(3, 8))
    for index in range(3):
        alone = region_softmax(similarity[index : index + 1], ids[index : index + 1])
        torch.testing.assert_close(alone[0], together[index])
    torch.testing.assert_close(together[2, :4, :4], torch.eye(4))  # nothing is above the mean but oneself


def test_similar_regions_are_merged_in_chains() -> None:
    angles = torch.tensor([0.0, 0.5, 1.0, 2.6, 2.7])  # cosines of neighbours: .88, .88, -.03, .995
    features = torch.stack([angles.cos(), angles.sin()], dim=1).repeat_interleave(2, dim=0)
    ids = torch.tensor([2, 2, 3, 3, 8, 8, 20000, 20000, 30000, 30000])
    merged = merge_regions(ids, features, within=0.2)
    assert merged.tolist() == [2] * 6 + [20000] * 4
    assert merge_regions(ids, features, within=0.0).tolist() == ids.tolist()
    order = torch.randperm(10)
    assert merge_regions(ids[order], features[order], within=0.2).tolist() == merged[order].tolist()


def test_what_is_not_merged() -> None:
    same = torch.ones(6, 4) / 2
    ids = torch.tensor([PADDING, 0, 5, 5, 6, 7])
    assert merge_regions(ids, same).tolist() == [PADDING, 0, 5, 5, 5, 5]
    assert merge_regions(ids, same, as_published=True).tolist() == [PADDING, 0, 0, 0, 0, 0]
    assert merge_regions(ids.clamp_max(5), same).tolist() == [PADDING, 0, 5, 5, 5, 5]
    nothing = torch.zeros(6, dtype=torch.long)
    assert merge_regions(nothing, same).tolist() == nothing.tolist()


def random_relation(size: int, seed: int) -> torch.Tensor:
    pairs = torch.rand(size, size, generator=torch.Generator().manual_seed(seed)) < 1 / size
    return pairs | pairs.T


@pytest.mark.parametrize("size", [1, 2, 17, 60])
def test_connected_components(size: int) -> None:
    pairs = random_relation(size, size)
    expected = list(range(size))
    for start in range(size):  # depth first
        stack = [start] if expected[start] == start else []
        while stack:
            node = stack.pop()
            for other in pairs[node].nonzero()[:, 0].tolist():
                if expected[other] == other and other > start:
                    expected[other] = start
                    stack.append(other)
    assert connected(pairs).tolist() == expected
    path = torch.diag(torch.ones(size - 1), 1) > 0
    assert connected(path | path.T).tolist() == [0] * size


def test_connected_components_are_dbscans_clusters() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    features = unit(40, 3)
    distance = (1 - features @ features.T).clamp_min(0)
    labels = cluster.DBSCAN(eps=0.05, min_samples=1, metric="precomputed").fit_predict(distance.numpy())
    ours, labels = connected(distance <= 0.05), torch.from_numpy(labels)
    assert torch.equal(ours[:, None] == ours, labels[:, None] == labels)
