"""SAM's attention within similar tokens against a slow loop written from the formula."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ovseg import sam_structures
from ovseg.correlation.segments import cosine_thresholds, segment_pooling, segment_rows
from ovseg.sam_structures import GridAttention

GRID, VALID = (6, 6), (4, 5)


def random_attention(batch: int = 2, seed: int = 0, scale: float = 1.0) -> GridAttention:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = scale * torch.randn(3, batch, 3, 36, 8, generator=generator)
    rel_rows, rel_cols = torch.randn(2, batch, 3, 36, 6, generator=generator)
    return GridAttention(q, k, v + 0.3, rel_rows, rel_cols, GRID)


def affinity(
    attention: GridAttention, image: int = 0, valid_hw: tuple[int, int] = VALID, **options
) -> Tensor:
    return torch.cat([weights for _, weights in segment_rows(attention, image, valid_hw, **options)])


def by_hand(attention: GridAttention, image: int, cosine_factor: float, keep_negative: bool) -> Tensor:
    cells = [y * GRID[1] + x for y in range(VALID[0]) for x in range(VALID[1])]
    heads = range(attention.q.shape[1])
    assert attention.rel_rows is not None
    assert attention.rel_cols is not None
    weights, cosine = torch.zeros(3, 20, 20), torch.zeros(3, 20, 20)
    for head in heads:
        q, k, v = (part[image, head] for part in (attention.q, attention.k, attention.v))
        for row, i in enumerate(cells):
            logits = torch.stack(
                [
                    q[i] @ k[j] / 8**0.5
                    + attention.rel_rows[image, head, i, j // 6]
                    + attention.rel_cols[image, head, i, j % 6]
                    for j in range(36)
                ]
            )
            weights[head, row] = logits.softmax(dim=0)[cells]
            cosine[head, row] = torch.cosine_similarity(v[i], v[cells], dim=-1)
    result = torch.zeros(20, 20)
    for row in range(20):
        threshold = float(cosine_factor * cosine[:, row].mean())
        if threshold < 0 and not keep_negative:
            threshold = 0.6
        kept = weights[:, row] * (cosine[:, row] > min(threshold, 0.9))
        result[row] = kept.mean(dim=0) / kept.mean(dim=0).sum()
    return result


@pytest.mark.parametrize(
    ("cosine_factor", "keep_negative"), [(1.2, True), (0.0, True), (3.0, False), (-1.0, False)]
)
def test_equals_the_formula(cosine_factor: float, keep_negative: bool) -> None:
    attention = random_attention()
    for image in (0, 1):
        ours = affinity(attention, image, cosine_factor=cosine_factor, keep_negative=keep_negative)
        torch.testing.assert_close(ours, by_hand(attention, image, cosine_factor, keep_negative))


def test_rows() -> None:
    weights = affinity(random_attention())
    assert weights.shape == (20, 20)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(20))
    assert (weights == 0).any()


def test_thresholds() -> None:
    values = torch.nn.functional.normalize(torch.randn(3, 20, 8), dim=-1)
    mean = (values @ values.mT).mean(dim=(0, 2))
    torch.testing.assert_close(cosine_thresholds(values, 1.2), (1.2 * mean).clamp_max(0.9))
    flipped = cosine_thresholds(values, -1.0, keep_negative=False)
    torch.testing.assert_close(flipped, torch.where(mean > 0, 0.6, -mean).clamp_max(0.9))
    assert (cosine_thresholds(torch.ones(1, 4, 1), 5.0) == 0.9).all()


def test_pooling_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    attention, canvas = random_attention(), torch.randn(2, 7, *VALID)
    whole = segment_pooling(canvas, attention)
    for image in (0, 1):
        expected = affinity(attention, image) @ canvas[image].flatten(1).T
        torch.testing.assert_close(whole[image].flatten(1).T, expected)
    monkeypatch.setitem(sam_structures.CHUNK_ELEMENTS, "cpu", 3 * 36)
    assert len(list(segment_rows(attention, 0, VALID))) == 7
    torch.testing.assert_close(segment_pooling(canvas, attention), whole)


def test_alone_equals_in_a_batch() -> None:
    attention, canvas = random_attention(batch=3), torch.randn(3, 7, *VALID)
    together = segment_pooling(canvas, attention)
    for index in range(3):
        one = slice(index, index + 1)
        names = ("q", "k", "v", "rel_rows", "rel_cols")
        alone = replace(attention, **{name: getattr(attention, name)[one] for name in names})
        torch.testing.assert_close(segment_pooling(canvas[one], alone)[0], together[index])


def test_flat_image_is_finite() -> None:
    attention = random_attention()
    flat = replace(
        attention,
        q=torch.ones_like(attention.q),
        k=torch.ones_like(attention.k),
        v=torch.ones_like(attention.v),
    )
    weights = affinity(flat)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(20))


def test_a_row_that_keeps_nothing_keeps_itself() -> None:
    attention = random_attention()
    values = attention.v.clone()
    values[:, :, 0] = 0  # no direction: similar to nothing, not to itself either
    weights = affinity(replace(attention, v=values))
    torch.testing.assert_close(weights[0], torch.eye(20)[0])
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(20))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    attention = random_attention()
    names = ("q", "k", "v", "rel_rows", "rel_cols")
    half = replace(attention, **{name: getattr(attention, name).to(dtype) for name in names})
    weights = affinity(half, cosine_factor=0.0)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(20))
    assert segment_pooling(torch.randn(2, 7, *VALID).to(dtype), half).isfinite().all()
