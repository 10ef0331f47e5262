from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ovseg.errors import ConfigError, ShapeError
from ovseg.heads.count_bins import CountBins, number_word
from ovseg.heads.ebc import IMAGENET_MEAN, IMAGENET_STD, EbcCounter, EbcHead, check_statistics, slide
from ovseg.training.count_losses import block_counts, dace_loss, transport_gradient

BINS = CountBins.published("sha")


def head(channels: int = 12, dim: int = 12, **options: object) -> EbcHead:
    torch.manual_seed(0)
    return EbcHead(torch.randn(len(BINS), dim), BINS, channels=channels, **options)


class Encoder(nn.Module):
    """One feature cell for 16 px, from the pixels' means."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN))
        self.register_buffer("std", torch.tensor(IMAGENET_STD))
        torch.manual_seed(1)
        self.mix = nn.Conv2d(3, 12, 1)

    def forward(self, image: Tensor) -> Tensor:
        normal = (image - self.mean[:, None, None]) / self.std[:, None, None]
        return self.mix(nn.functional.avg_pool2d(normal, 16))


def test_a_number_is_the_expectation_over_bins() -> None:
    features = torch.randn(2, 12, 3, 5)
    blocks = head(feature_px=8)(features)
    p = blocks.logits.softmax(dim=1)
    centres = torch.tensor(BINS.centres)[:, None, None]
    expected = sum(p[:, n] * centres[n] for n in range(len(BINS)))
    torch.testing.assert_close(blocks.density[:, 0], expected)
    spread = sum(p[:, n] * (centres[n] - expected) ** 2 for n in range(len(BINS)))
    torch.testing.assert_close(blocks.variance[:, 0], spread)
    alone = head(feature_px=8)(features[1:])
    torch.testing.assert_close(blocks.counts[1:], alone.counts)


def test_features_are_resized_to_a_cell_per_block_and_projected() -> None:
    blocks = head(channels=7)(torch.randn(1, 7, 3, 5))
    assert blocks.density.shape == (1, 1, 6, 10)
    assert head(channels=7, feature_px=8)(torch.zeros(1, 7, 3, 5)).density.isfinite().all()


def test_a_decoder_is_applied() -> None:
    features = torch.randn(1, 12, 3, 5)
    plain, flipped = head(), head(decoder=nn.Threshold(0.0, 0.0))
    assert not torch.allclose(plain(features).logits, flipped(features).logits)


def test_whole_tiles_count_like_the_whole() -> None:
    image = torch.rand(2, 3, 48, 80)

    def blocks(windows: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(windows[:, :1], 8)

    options = dict(window_hw=(16, 16), block_px=8)
    for stride_hw in [(16, 16), (8, 8), (12, 16)]:
        joined = slide(blocks, image, stride_hw=stride_hw, max_batch=3, **options)
        assert joined.shape == (2, 1, 6, 10)
        if stride_hw != (12, 16):  # whole blocks: then every window sees the same blocks
            torch.testing.assert_close(joined, blocks(image))
    with pytest.raises(ConfigError, match="whole blocks"):
        slide(blocks, image, window_hw=(20, 16), stride_hw=(8, 8), block_px=8)
    with pytest.raises(ConfigError, match="gaps"):
        slide(blocks, image, window_hw=(16, 16), stride_hw=(8, 24), block_px=8)


@pytest.mark.parametrize("image_hw", [(64, 96), (37, 51), (20, 200)])
def test_counting_any_size(image_hw: tuple[int, int]) -> None:
    counter = EbcCounter(Encoder(), head(), window_hw=(32, 32), stride_hw=(32, 32), name="cell")
    torch.manual_seed(2)
    image = torch.rand(2, 3, *image_hw)
    both = counter(image)
    assert [each.image_hw for each in both] == [image_hw] * 2
    cell = both[1]["cell"]
    assert cell.picture(image_hw).sum() == pytest.approx(cell.number, rel=1e-4)
    assert cell.uncertainty > 0
    assert cell.points_xy.shape == (0, 2)
    assert counter(image[1:])[0]["cell"].number == pytest.approx(cell.number, rel=1e-5)


def test_clip_statistics_are_refused() -> None:
    encoder = Encoder()
    check_statistics(encoder.mean[:, None, None], encoder.std[:, None, None])
    encoder.mean.copy_(torch.tensor([0.48145466, 0.4578275, 0.40821073]))
    with pytest.raises(ConfigError, match="ImageNet"):
        EbcCounter(encoder, head())


def test_bins() -> None:
    numbers = torch.tensor([[0.0, 1.0], [3.0, 4.0], [5.0, 90.0]])
    assert BINS.index(numbers).tolist() == [[0, 1], [3, 4], [4, 4]]
    merged = CountBins(((0.0, 0.0), (1.0, 2.0), (3.0, math.inf)), (0.0, 1.4, 3.3), 8)
    assert merged.index(torch.tensor([0.0, 1.0, 2.0, 3.0])).tolist() == [0, 1, 1, 2]
    assert merged.prompts(singular="apple", plural="apples")[1:] == (
        "There are between one and two apples.",
        "There are more than three apples.",
    )
    assert [number_word(n) for n in (0, 19, 20, 42, 99, 100)] == [
        "zero",
        "nineteen",
        "twenty",
        "forty-two",
        "ninety-nine",
        "100",
    ]
    assert CountBins.published("qnrf", block_px=32, most=19).centres[-1] == 23.01897


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (((0.0, 0.0), (2.0, math.inf)), "without gap"),
        (((0.0, 1.0), (1.0, math.inf)), "without gap"),
        (((0.0, 0.0), (1.0, 4.0)), "must be open"),
        (((0.0, math.inf),), "as many centres"),
    ],
)
def test_bins_that_do_not_cover_every_number_are_refused(bounds: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CountBins(bounds, (0.0, 1.0), 8)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="5 bins need a sentence each, got 4"):
        EbcHead(torch.randn(4, 12), BINS, channels=12)
    with pytest.raises(ConfigError, match="there are: 8 px"):
        CountBins.published("sha", block_px=4)
    with pytest.raises(ConfigError, match="qnrf"):
        CountBins.published("ucf")


def dots(*xy: tuple[float, float]) -> Tensor:
    return torch.tensor(xy).reshape(-1, 2)


def test_dots_become_block_counts() -> None:
    points = dots((0.0, 0.0), (7.9, 7.2), (7.9, 7.2), (24.0, 15.5), (8.0, 3.0))
    counts = block_counts([points, dots()], (16, 24), 8)
    assert counts[0, 0].tolist() == [[3, 1, 0], [0, 0, 1]]
    assert counts[1].sum() == 0
    assert block_counts([points], (16, 24), 8, as_published=True)[0, 0, 0, 0] == 2
    with pytest.raises(ShapeError, match="outside"):
        block_counts([dots((25.0, 3.0))], (16, 24), 8)
    with pytest.raises(ShapeError, match="whole blocks"):
        block_counts([points], (16, 25), 8)


@pytest.mark.parametrize("kind", ["mae", "mse", "dmcount"])
def test_the_loss_falls_towards_the_dots(kind: str) -> None:
    torch.manual_seed(4)
    points = [dots((3.0, 3.0), (20.0, 12.0), (21.0, 12.0)), dots()]
    logits = torch.randn(2, len(BINS), 2, 3, requires_grad=True)
    centres = torch.tensor(BINS.centres)[:, None, None]
    losses = []
    for _ in range(60):
        density = (logits.softmax(dim=1) * centres).sum(dim=1, keepdim=True)
        loss, terms = dace_loss(logits, density, points, BINS, count_loss=kind)
        losses.append(float(loss.detach()))
        assert "ce" in terms
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all()
        logits = (logits.detach() - 0.3 * gradient).requires_grad_()
    assert losses[-1] < 0.35 * losses[0]


def test_transport_pulls_the_density_to_the_dots() -> None:
    density = torch.ones(3, 5)
    slope = transport_gradient(density, dots((4.0, 20.0)), 8)
    assert slope.argmin() == 2 * 5
    # Scaling the density cannot help: the gradient is that of the normalised one.
    assert (slope * density).sum().abs() < 1e-3 * slope.abs().sum()
    assert transport_gradient(density, dots(), 8).abs().sum() == 0


def test_transport_weighs_images_alike_unless_as_published() -> None:
    points = [dots((4.0, 4.0))] * 2
    gradients = []
    for as_published in (False, True):
        density = (torch.arange(12.0).reshape(1, 1, 3, 4) + 1).repeat(2, 1, 1, 1).requires_grad_()
        logits = torch.zeros(2, len(BINS), 3, 4)
        loss, _ = dace_loss(logits, density, points, BINS, count_loss="dmcount", as_published=as_published)
        gradients.append(torch.autograd.grad(loss, density)[0][0, 0])
    added = 0.1 * 0.5 * transport_gradient(torch.arange(12.0).reshape(3, 4) + 1, points[0], 8)
    torch.testing.assert_close(gradients[1] - gradients[0], added, rtol=1e-3, atol=1e-4)


def test_unusable_dots_and_losses_are_refused() -> None:
    logits, density = torch.zeros(1, len(BINS), 2, 3), torch.zeros(1, 1, 2, 3)
    with pytest.raises(ShapeError, match="dots of 2"):
        dace_loss(logits, density, [dots(), dots()], BINS)
