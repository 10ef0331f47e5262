from __future__ import annotations

import pytest
import torch

from ovseg.errors import ShapeError, VocabularyError
from ovseg.structures import Affinity, SoftmaxTerm, TextBank


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
