"""What every encoder promises. Inherit, give `build`, and pytest does the rest."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ovseg.encoders.clip import ClipEncoder
from ovseg.errors import ConfigError, ShapeError

PATCH = 8
#: One patch, tall, wide, the trained square, and larger than trained.
SIZES = [(8, 8), (40, 16), (16, 40), (32, 32), (48, 80)]
close = torch.testing.assert_close


def shake(module: nn.Module) -> nn.Module:
    """Moves every parameter away from its initial value, so that norms, scales and biases show."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module.eval().requires_grad_(False)


def picture(height: int, width: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as in the textbook."""
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v


class EncoderContract:
    """The contract. Towers have patches of 8 pixels, three blocks, output width 16."""

    num_prefix = 1
    trained_hw = (4, 4)

    def build(self) -> nn.Module:
        raise NotImplementedError

    @pytest.fixture
    def encoder(self) -> ClipEncoder:
        torch.manual_seed(0)
        return ClipEncoder(shake(self.build())).eval()

    @pytest.mark.parametrize("size_hw", SIZES)
    def test_any_size_divisible_by_the_patch(self, encoder: ClipEncoder, size_hw: tuple[int, int]) -> None:
        features = encoder(picture(*size_hw))
        assert features.grid.shape == (1, 16, size_hw[0] // PATCH, size_hw[1] // PATCH)
        assert features.prefix.shape == (1, self.num_prefix, 16)
        assert features.image_hw == size_hw
        assert features.grid.isfinite().all()

    @pytest.mark.parametrize("size_hw", [(20, 16), (16, 20)])
    def test_other_sizes_are_refused_with_the_fix(
        self, encoder: ClipEncoder, size_hw: tuple[int, int]
    ) -> None:
        with pytest.raises(ShapeError, match=rf"{size_hw[0]}x{size_hw[1]}.*16x16|16x16.*{size_hw[0]}x"):
            encoder(picture(*size_hw))

    @pytest.mark.parametrize("size_hw", SIZES)
    def test_open_then_close_is_the_forward(self, encoder: ClipEncoder, size_hw: tuple[int, int]) -> None:
        image = picture(*size_hw, batch=2)
        block = encoder.open(image)
        place = {"hw": block.hw, "num_prefix": block.num_prefix, "image_hw": block.image_hw}
        mixed = attend(block.q, block.k, block.v)
        closed, forward = encoder.close(mixed, residual=block.residual, **place), encoder(image)
        close(closed.grid, forward.grid, rtol=0, atol=1e-5)
        close(closed.prefix, forward.prefix, rtol=0, atol=1e-5)
        dropped = encoder.close(mixed, residual=None, **place)
        assert (dropped.grid - forward.grid).abs().max() > 1e-2

    def test_taps_are_outputs_of_blocks(self, encoder: ClipEncoder) -> None:
        image = picture(16, 40)
        blocks = encoder.tower.blocks
        tapped = encoder.open(image, taps=(0, -2, 1, -len(blocks))).taps
        tokens, _ = encoder.embed(image)
        first = blocks[0](tokens)
        assert set(tapped) == {0, -2, 1, -len(blocks)}
        close(tapped[0], first)
        close(tapped[-len(blocks)], first)
        close(tapped[1], blocks[1](first))
        close(encoder.open(image).residual, tapped[-2])

    @pytest.mark.parametrize("tap", [-1, 2, 3, -4, 7])
    def test_taps_that_are_no_earlier_block(self, encoder: ClipEncoder, tap: int) -> None:
        with pytest.raises(ConfigError, match=f"no tap at block {tap}: the tower has 3 blocks"):
            encoder.open(picture(16, 40), taps=(tap,))

    def test_parameters_are_only_read(self, encoder: ClipEncoder) -> None:
        before = {name: value.clone() for name, value in encoder.state_dict().items()}
        ids = {name: id(value) for name, value in encoder.named_parameters()}
        for size_hw in SIZES:
            encoder(picture(*size_hw))
        assert {name: id(value) for name, value in encoder.named_parameters()} == ids
        for name, value in encoder.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_the_size_before_does_not_matter(self, encoder: ClipEncoder) -> None:
        fresh = encoder(picture(16, 40)).grid
        encoder(picture(48, 80))
        assert torch.equal(encoder(picture(16, 40)).grid, fresh)

    def test_batch_equals_single(self, encoder: ClipEncoder) -> None:
        images = torch.cat([picture(16, 40, seed=seed) for seed in range(3)])
        together = encoder(images)
        for index in range(3):
            alone = encoder(images[index : index + 1])
            close(together.grid[index], alone.grid[0], rtol=0, atol=1e-5)
            close(together.prefix[index], alone.prefix[0], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_finite_and_near(self, encoder: ClipEncoder, dtype: torch.dtype) -> None:
        exact = encoder(picture(24, 40)).grid
        encoder.visual.to(dtype)
        half = encoder(picture(24, 40)).grid
        assert half.dtype == dtype
        assert half.isfinite().all()
        assert torch.cosine_similarity(exact, half.float(), dim=1).min() > 0.98

    def test_statistics_are_those_given(self, encoder: ClipEncoder) -> None:
        mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
        image = picture(16, 40)
        pixels = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        ours = ClipEncoder(encoder.visual, mean=mean, std=std)(image).grid
        plain = ClipEncoder(encoder.visual, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))(pixels).grid
        close(ours, plain)

    def test_library_agrees_at_the_trained_size(self, encoder: ClipEncoder) -> None:
        """What the library pools at its own size, found in the tokens."""
        image = picture(*(cells * PATCH for cells in self.trained_hw), batch=2)
        pooled = encoder.visual((image - encoder.mean) / encoder.std)
        close(self.pooled_token(encoder, image), pooled, rtol=0, atol=1e-5)

    def pooled_token(self, encoder: ClipEncoder, image: Tensor) -> Tensor:
        """The token `(B, D)` that the library's pooled embedding is: the class token."""
        return encoder(image).prefix[:, 0]
