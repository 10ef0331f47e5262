"""Promises that all parts of a kind keep; a test class of three lines inherits them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ovseg.structures import Affinity, OpenBlock


def random_block(
    *, batch: int = 2, hw: tuple[int, int] = (3, 5), num_prefix: int = 1, seed: int = 0
) -> OpenBlock:
    """An opened block of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    tokens = num_prefix + hw[0] * hw[1]
    q, k, v = torch.randn(3, batch, 2, tokens, 8, generator=generator)
    residual = torch.randn(batch, tokens, 16, generator=generator)
    return OpenBlock(q, k, v, residual, hw, num_prefix, (hw[0] * 16, hw[1] * 16))


def _map(block: OpenBlock, change: Any) -> OpenBlock:
    return replace(
        block,
        q=change(block.q),
        k=change(block.k),
        v=change(block.v),
        residual=change(block.residual[:, None])[:, 0],
    )


class CorrelationContract:
    """Finite, non-negative with a documented row sum, independent of the batch, equivariant to flips."""

    row_sum = 1.0

    def build(self) -> Any:
        raise NotImplementedError

    def affinity(self, block: OpenBlock) -> Affinity:
        return self.build()(block)

    @pytest.mark.parametrize("num_prefix", [0, 1, 5])
    @pytest.mark.parametrize("hw", [(3, 5), (7, 2), (1, 9)])
    def test_rows(self, hw: tuple[int, int], num_prefix: int) -> None:
        affinity = self.affinity(random_block(hw=hw, num_prefix=num_prefix))
        weights = affinity.weights
        assert affinity.hw == hw
        assert weights.shape[-1] == num_prefix + hw[0] * hw[1]
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.full_like(weights[..., 0], self.row_sum))

    def test_alone_equals_in_a_batch(self) -> None:
        block = random_block(batch=3)
        together = self.affinity(block).weights
        for index in range(3):
            alone = self.affinity(_map(block, lambda x, i=index: x[i : i + 1])).weights
            torch.testing.assert_close(alone[0], together[index], atol=1e-6, rtol=1e-5)

    def test_flat_image_is_finite(self) -> None:
        flat = _map(random_block(), lambda x: torch.ones_like(x))
        assert self.affinity(flat).weights.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_finite(self, dtype: torch.dtype) -> None:
        block = _map(random_block(), lambda x: x.to(dtype))
        mixed = self.affinity(block).mix(block.v)
        assert mixed.dtype == dtype
        assert mixed.isfinite().all()
        full = self.affinity(random_block()).mix(random_block().v)
        torch.testing.assert_close(mixed.float(), full, atol=0.05, rtol=0.05)

    def test_mirrored_image_gives_mirrored_affinity(self) -> None:
        block = random_block()
        order = _mirror(block.hw, block.num_prefix)
        mirrored = self.affinity(_map(block, lambda x: x[:, :, order])).weights
        torch.testing.assert_close(
            mirrored, self.affinity(block).weights[:, :, order][..., order], atol=1e-6, rtol=1e-5
        )


def _mirror(hw: tuple[int, int], num_prefix: int) -> Tensor:
    cells = torch.arange(hw[0] * hw[1]).reshape(hw).flip(1).flatten() + num_prefix
    return torch.cat([torch.arange(num_prefix), cells])
