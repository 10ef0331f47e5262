from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import random_bank

from ovseg.errors import ShapeError
from ovseg.refine.pamr import PAMR
from ovseg.resampling import TILE_ELEMENTS, Resampling
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures, Pictures, TextBank


def score_map(bank: TextBank | None = None, batch: int = 2, hw=(5, 7), size=(33, 58), **options) -> ScoreMap:
    bank = bank or random_bank()
    cosine = torch.randn(batch, len(bank.embeddings), *hw).tanh()
    return ScoreMap(cosine, bank, options.pop("temperature", 20.0), Resampling.bilinear(hw, size), **options)


def slow_labels(m: ScoreMap, index: int, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Straight from the formula: upsample everything, softmax over queries, loop over classes."""
    full = F.interpolate(m.cosine[index : index + 1], size=m.image_hw, mode="bilinear", align_corners=False)
    full = F.interpolate(full, size=size, mode="bilinear", align_corners=False)[0]
    probabilities = (full * m.temperature).softmax(0)
    classes = m.bank.class_of_query
    best = torch.stack([probabilities[classes == k].max(0).values for k in range(len(m.bank.names))])
    return best.max(0).indices, best.max(0).values


class TestScoreMap:
    @pytest.mark.parametrize("size", [(33, 58), (70, 41)])
    def test_labels_equal_the_slow_way(self, size: tuple[int, int]) -> None:
        m = score_map()
        labels, confidence = m.labels(size)
        for index in range(2):
            slow, best = slow_labels(m, index, size)
            assert (labels[index] == slow).float().mean() > 0.9999
            torch.testing.assert_close(confidence[index], best, atol=1e-5, rtol=1e-4)

    def test_chunks_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        m = score_map()
        whole = m.labels()
        monkeypatch.setitem(TILE_ELEMENTS, "cpu", 40)
        pieces = m.labels()
        assert (whole[0] == pieces[0]).float().mean() > 0.999
        torch.testing.assert_close(whole[1], pieces[1], atol=1e-5, rtol=1e-5)

    def test_permuting_classes_permutes_the_answer(self) -> None:
        m = score_map()
        order = torch.tensor([2, 0, 3, 1])
        renamed = TextBank(m.bank.embeddings, order[m.bank.class_of_query], m.bank.names)
        permuted = ScoreMap(m.cosine, renamed, m.temperature, m.resampling)
        assert torch.equal(permuted.labels()[0], order[m.labels()[0]])

    def test_softmax_over_class_ignores_added_synonyms(self) -> None:
        m = score_map(random_bank((1, 1, 1)), softmax_over="class")
        twice = TextBank(
            torch.cat([m.bank.embeddings, m.bank.embeddings[:1]]), torch.tensor([0, 1, 2, 0]), m.bank.names
        )
        repeated = ScoreMap(
            torch.cat([m.cosine, m.cosine[:, :1]], 1), twice, 20.0, m.resampling, softmax_over="class"
        )
        torch.testing.assert_close(repeated.probabilities, m.probabilities)
        as_query = ScoreMap(repeated.cosine, twice, 20.0, m.resampling)
        assert (as_query.probabilities < m.probabilities - 1e-6).any()

    def test_softmax_at_patch_upsamples_probabilities(self) -> None:
        m = score_map(softmax_at="patch")
        _, confidence = m.labels()
        upsampled = m.resampling.apply(m.probabilities)
        torch.testing.assert_close(confidence, upsampled.max(1).values, atol=1e-5, rtol=1e-4)

    def test_topk_is_sorted_and_starts_with_labels(self) -> None:
        m = score_map()
        values, indices = m.topk(3)
        assert (values.diff(dim=1) <= 0).all()
        assert torch.equal(indices[:, 0], m.labels()[0])

    def test_disallowed_classes_are_never_chosen(self) -> None:
        m = score_map()
        allowed = torch.tensor([[True, False, True, True], [True, True, True, True]])
        labels, _ = m.labels(allowed=allowed)
        assert (labels[0] != 1).all()
        assert torch.equal(labels[1], m.labels()[0][1])

    def test_select_keeps_one_image(self) -> None:
        m = score_map()
        assert torch.equal(m.select(1).labels()[0][0], m.labels()[0][1])
        assert len(m.select(1)) == 1

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"softmax_over": "class"},
            {"softmax_at": "patch"},
            {"softmax_at": "patch", "softmax_over": "class"},
        ],
    )
    @pytest.mark.parametrize("spread", [False, True])
    def test_labels_are_the_first_of_topk(
        self, spread: bool, options: dict, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(TILE_ELEMENTS, "cpu", 300)  # several pieces, and few queries at a time
        m = score_map(**options)
        if spread:
            pictures = Pictures(torch.rand(2, 3, *m.image_hw))
            m = PAMR(2, (1, 2))(m, DenseFeatures(m.cosine, m.resampling, pictures=pictures))
        for size in (m.image_hw, (20, 31)):
            labels, confidence = m.labels(size)
            values, indices = m.topk(2, size)
            assert (labels == indices[:, 0]).float().mean() > 0.999
            torch.testing.assert_close(confidence, values[:, 0], atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("options", [{}, {"softmax_over": "class"}, {"softmax_at": "patch"}])
    def test_barred_classes_still_compete_for_probability(self, options: dict) -> None:
        m = score_map(**options)
        allowed = torch.tensor([[True, False, False, True]] * 2)
        labels, confidence = m.labels(allowed=allowed)
        full = torch.stack([_whole(m, i) for i in range(2)]) * allowed[:, :, None, None]
        torch.testing.assert_close(confidence, full.amax(1), atol=1e-5, rtol=1e-4)
        assert (labels == full.argmax(1)).float().mean() > 0.999

    @pytest.mark.parametrize("options", [{}, {"softmax_over": "class"}, {"softmax_at": "patch"}])
    def test_class_pictures_are_the_tiles(self, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(TILE_ELEMENTS, "cpu", 300)
        m = score_map(**options)
        parts = list(m.class_pictures(1))
        assert len(parts) > 1
        assert torch.cat([classes for classes, _ in parts]).tolist() == list(range(len(m.bank.names)))
        torch.testing.assert_close(torch.cat([p for _, p in parts]), _whole(m, 1), atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("options", [{}, {"softmax_over": "class"}])
    def test_spread_pictures_are_held_where_they_fit(
        self, options: dict, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(TILE_ELEMENTS, "cpu", 300)
        m = score_map(**options)
        pictures = Pictures(torch.rand(2, 3, *m.image_hw))
        m = PAMR(2, (1, 2))(m, DenseFeatures(m.cosine, m.resampling, pictures=pictures))
        (held,) = m.class_pictures(1)
        monkeypatch.setattr("ovseg.score_map.HELD", 0)
        parts = list(m.class_pictures(1))
        assert len(parts) > 1
        torch.testing.assert_close(torch.cat([p for _, p in parts]), held[1], atol=1e-5, rtol=1e-4)


def test_revisions_stay_with_their_image() -> None:
    m = score_map()
    first, second, third = (lambda _, labels, confidence: (labels + 1, confidence) for _ in range(3))
    chains = m.revised([first, second]).revised([third, third]).revisions
    assert chains == ((first, third), (second, third))
    assert m.revised([first, second]).select(1).revisions == ((second,),)
    with pytest.raises(ShapeError, match="as many revisions"):
        m.revised([first])


def _whole(m: ScoreMap, index: int) -> torch.Tensor:
    full = torch.zeros(len(m.bank.names), *m.image_hw)
    for ys, xs, piece in m.tiles(index, m.image_hw):
        full[:, ys, xs] = piece
    return full
