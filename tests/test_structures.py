from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import random_bank

from ovseg.errors import ShapeError, VocabularyError
from ovseg.structures import TILE_ELEMENTS, Affinity, Resampling, ScoreMap, SoftmaxTerm, TextBank, bilinear_matrix


def score_map(bank: TextBank | None = None, batch: int = 2, hw=(5, 7), size=(33, 58), **options) -> ScoreMap:
    bank = bank or random_bank()
    cosine = torch.randn(batch, len(bank.embeddings), *hw).tanh()
    return ScoreMap(cosine, bank, options.pop("temperature", 20.0), Resampling.bilinear(hw, size), **options)


class TestResampling:
    @pytest.mark.parametrize(("cells", "pixels"), [(5, 33), (7, 7), (9, 4), (1, 6)])
    def test_matrix_is_torchs_interpolation(self, cells: int, pixels: int) -> None:
        values = torch.randn(1, 2, cells)
        theirs = F.interpolate(values, size=pixels, mode="linear", align_corners=False)
        torch.testing.assert_close(values @ bilinear_matrix(cells, pixels).T, theirs)

    def test_chain_is_two_interpolations(self) -> None:
        grid = torch.randn(3, 5, 7)
        ours = Resampling.bilinear((5, 7), (40, 61)).then((23, 90)).apply(grid)
        middle = F.interpolate(grid[None], size=(40, 61), mode="bilinear", align_corners=False)
        theirs = F.interpolate(middle, size=(23, 90), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("max_elements", [1, 100, 1000, 10**9])
    def test_tiles_make_up_the_whole(self, max_elements: int) -> None:
        grid, resampling = torch.randn(3, 5, 7), Resampling.bilinear((5, 7), (31, 45))
        whole, covered = torch.zeros(3, 31, 45), torch.zeros(31, 45)
        for ys, xs, piece in resampling.tiles(grid, max_elements):
            assert piece.numel() <= max(max_elements, 3)
            whole[:, ys, xs] = piece
            covered[ys, xs] += 1
        assert (covered == 1).all()
        torch.testing.assert_close(whole, resampling.apply(grid), atol=1e-5, rtol=1e-5)

    def test_no_cells_is_an_error(self) -> None:
        with pytest.raises(ShapeError, match="at least 1"):
            bilinear_matrix(0, 4)


class TestTextBank:
    def test_every_class_needs_a_query(self) -> None:
        with pytest.raises(VocabularyError, match="at least once"):
            TextBank(torch.eye(2), torch.tensor([0, 2]), ("a", "b", "c"))

    def test_no_class(self) -> None:
        with pytest.raises(VocabularyError, match="at least one class"):
            TextBank(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), ())


class TestAffinity:
    def test_fused_equals_matrix(self) -> None:
        q, k, v = torch.randn(3, 2, 4, 11, 8)
        bias = torch.randn(11, 11)
        affinity = Affinity((2, 5), 1, terms=(SoftmaxTerm(q, k, bias), SoftmaxTerm(k, k)))
        torch.testing.assert_close(affinity.mix(v), affinity.weights @ v, atol=1e-5, rtol=1e-4)

    def test_matrix_or_terms(self) -> None:
        with pytest.raises(ShapeError, match="exactly one"):
            Affinity((2, 5), 1)


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
        repeated = ScoreMap(torch.cat([m.cosine, m.cosine[:, :1]], 1), twice, 20.0, m.resampling, softmax_over="class")
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
