"""Every correlation keeps the same promises; each is also compared with its formula, written slowly."""

from __future__ import annotations

import math

import pytest
import torch
from contracts import CorrelationContract, random_block

from ovseg.correlation import (
    IdentityCorrelation,
    NeighbourhoodCorrelation,
    QueryKeyCorrelation,
    SelfCorrelation,
)
from ovseg.errors import ConfigError


class TestQueryKey(CorrelationContract):
    def build(self) -> QueryKeyCorrelation:
        return QueryKeyCorrelation()


class TestQQ(CorrelationContract):
    def build(self) -> SelfCorrelation:
        return SelfCorrelation(("q",))


class TestSCLIP(CorrelationContract):
    row_sum = 2.0

    def build(self) -> SelfCorrelation:
        return SelfCorrelation(("q", "k"))


class TestNeighbourhood(CorrelationContract):
    def build(self) -> NeighbourhoodCorrelation:
        return NeighbourhoodCorrelation(2.0)


class TestGaussianAlone(CorrelationContract):
    def build(self) -> NeighbourhoodCorrelation:
        return NeighbourhoodCorrelation(2.0, "none")


def test_identity_builds_nothing() -> None:
    assert IdentityCorrelation()(random_block()) is None


def test_neighbourhood_formula() -> None:
    block = random_block(hw=(3, 4), num_prefix=1)
    ours = NeighbourhoodCorrelation(1.5)(block).weights[0, 1]
    keys = block.k[0, 1]
    for i in range(13):
        logits = []
        for j in range(13):
            similarity = float(keys[i] @ keys[j]) / math.sqrt(keys.shape[-1])
            if i and j:
                (y, x), (v, u) = divmod(i - 1, 4), divmod(j - 1, 4)
                similarity += math.exp(-((y - v) ** 2 + (x - u) ** 2) / (2 * 1.5**2))
            logits.append(similarity)
        torch.testing.assert_close(ours[i], torch.tensor(logits).softmax(0), atol=1e-5, rtol=1e-4)


def test_nonly_scale_is_the_mean_over_pairs() -> None:
    block = random_block(hw=(2, 3), num_prefix=1)
    pairs = [
        float(block.q[0, g, i].norm() * block.k[0, g, j].norm())
        for g in range(2)
        for i in range(7)
        for j in range(7)
    ]
    scale = sum(pairs) / len(pairs) / math.sqrt(block.q.shape[-1])
    row = NeighbourhoodCorrelation(2.0, "none")(block).weights[0, 0, 1]
    ratio = (row[1] / row[0]).log()  # self (bias 1) against the class token (bias 0)
    assert float(ratio) == pytest.approx(scale, rel=1e-4)


@pytest.mark.parametrize("parts", [(), ("q", "q")])
def test_bad_parts(parts: tuple) -> None:
    with pytest.raises(ConfigError, match="at most once"):
        SelfCorrelation(parts)


def test_bad_std() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        NeighbourhoodCorrelation(0.0)
