from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from support import random_bank, random_image, tiny_encoder, tiny_part

from ovseg.correlation.regions import PADDING
from ovseg.errors import ConfigError
from ovseg.heads import SegmentationHead
from ovseg.methods.corrclip import corrclip, published_spatial_blocks
from ovseg.scorer import Scorer


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def build(sam: torch.nn.Module | None = None, **options: object) -> Scorer:
    small = dict(short_side=64, crop=64, stride=56)
    return corrclip(tiny_encoder(), tiny_part("guide"), sam, **(small | options)).eval()


def blocks(height: int, width: int, seed: int = 0, lowest: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 4, (-(-height // 16), -(-width // 24)))
    return (np.kron(coarse, np.ones((16, 24), int))[:height, :width] + lowest).astype(np.int32)


@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("hw", [(70, 109), (37, 2000), (200, 16), (64, 64)])
def test_odd_sizes_and_flat_images_are_finite(hw: tuple[int, int], as_published: bool) -> None:
    scorer = build(short_side=32, as_published=as_published)
    images = [random_image(*hw), np.full((*hw, 3), 128, np.uint8)]
    m = scorer(scorer.prepare(images, [blocks(*hw)] * 2), random_bank(), hw)
    assert m.cosine.isfinite().all()
    for result in SegmentationHead()(m):
        assert result.labels.shape == hw
        assert np.isfinite(result.confidence).all()


@pytest.mark.parametrize("max_batch", [1, 3])
def test_one_by_one_equals_a_batch(max_batch: int) -> None:
    hw = (70, 109)
    images = [random_image(*hw, seed=seed) for seed in range(3)]
    regions = [blocks(*hw), blocks(*hw, seed=1, lowest=5), np.zeros(hw, np.int32)]
    together = build()
    grids = together.encode(together.prepare(images, regions)).grid
    alone = build(max_batch=max_batch)
    for index in range(3):
        one = alone.encode(alone.prepare(images[index : index + 1], regions[index : index + 1]))
        torch.testing.assert_close(one.grid[0], grids[index], atol=1e-5, rtol=1e-4)


def test_one_region_is_plain_attention_over_the_window() -> None:
    """One region: all pairs are allowed; no region: those above the mean, so something else."""
    scorer, image = build(), torch.rand(1, 3, 56, 56)
    pairs = []
    for fill in (0, 7):
        ids = torch.full((1, 56, 56), fill)
        pairs.append(scorer.features(image, ids).grid)
    none = scorer.features(image).grid
    torch.testing.assert_close(none, pairs[0])
    assert (pairs[0] - pairs[1]).abs().max() > 1e-3
    published = build(as_published=True)  # takes the lowest id for the unsegmented one, whatever it is
    theirs = [published.features(image, torch.full((1, 56, 56), fill)).grid for fill in (0, 7)]
    torch.testing.assert_close(*theirs)


def test_a_region_sees_only_itself() -> None:
    """Without the branches of CLIP's own attention, regions elsewhere do not matter."""
    scorer = build(spatial_weight=0.0, semantic_weight=0.0, merge_within=0.0)
    ids = torch.ones(1, 56, 56, dtype=torch.long)
    ids[:, :, 28:] = 2
    image = torch.rand(1, 3, 56, 56)
    whole = scorer.features(image, ids).grid
    moved = ids.clone()
    moved[:, :24, 28:] = 3  # the right half falls apart, the left stays as it is
    split = scorer.features(image, moved).grid
    torch.testing.assert_close(split[..., :3], whole[..., :3])
    assert (split[..., 4:] - whole[..., 4:]).abs().max() > 1e-3


def test_padding_takes_part_in_nothing() -> None:
    options = dict(crop=None, stride=None, short_side=None, merge_within=2.0)  # merges all that it may
    image, region = random_image(64, 96), np.ones((64, 96), np.int32)
    scorer, published = build(**options), build(**options, as_published=True)
    ours, theirs = (each.encode(each.prepare([image], [region])) for each in (scorer, published))
    assert ours.grid.shape[-2:] == (14, 14)  # padded to 112 x 112
    ids = torch.full((1, 112, 112), PADDING)
    ids[:, 24:88, 8:104] = 1
    pixels = scorer.encoder.mean.expand(1, 3, 112, 112).clone()
    pixels[..., 24:88, 8:104] = scorer.prepare([image]).image
    expected = torch.nn.functional.normalize(scorer.features(pixels, ids).grid, dim=1)
    torch.testing.assert_close(ours.grid, expected, atol=1e-5, rtol=1e-4)
    assert (theirs.grid - expected).abs().max() > 1e-3


def slow_features(scorer: Scorer, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The formula for one window without unsegmented patches, cell by cell and region by region."""
    encoder, last = scorer.encoder, scorer.encoder.tower.blocks[-1]
    guide = scorer.guide(image).grid[0]
    (height, width), patch = guide.shape[1:], image.shape[-1] // guide.shape[2]
    region = [[int(ids[0, y * patch, x * patch]) for x in range(width)] for y in range(height)]
    stream, (h, w) = encoder.embed(image, scorer.positions)
    coarse = [[region[y * height // h][x * width // w] for x in range(w)] for y in range(h)]

    copies = {}
    for which in {each for row in coarse for each in row}:
        seen = [0] + [1 + y * w + x for y in range(h) for x in range(w) if coarse[y][x] == which]
        copy, tokens, outputs = stream[:, :1], stream, []
        for block in encoder.tower.blocks:
            q, k, v = block.split(torch.cat([copy, tokens[:, seen]], dim=1))
            weights = (q[:, :, :1] @ k[:, :, 1:].mT / q.shape[-1] ** 0.5).softmax(dim=-1)
            copy = block.feed_forward(copy + block.project(weights @ v[:, :, 1:]))
            tokens = block(tokens)
            outputs.append(tokens)
        copies[which] = encoder.tower.finish(copy)[0, 0]

    def mixed(tokens: torch.Tensor) -> torch.Tensor:
        values = last.split(tokens)[2][0, :, 1:].mT.unflatten(-1, (h, w))
        values = torch.nn.functional.interpolate(values, (height, width), mode="bilinear")
        rows = []
        for y in range(height):
            for x in range(width):
                inside = torch.tensor([[each == region[y][x] for each in row] for row in region])
                cosine = torch.cosine_similarity(guide, guide[:, y, x][:, None, None], dim=0)[inside]
                rows.append(values[:, :, inside] @ (4.0 * cosine).softmax(dim=0))
        mixed = torch.stack(rows, dim=1)[None]
        return encoder.tower.finish(last.project(mixed))[0]

    semantic = [copies[coarse[y * h // height][x * w // width]] for y in range(height) for x in range(width)]
    tokens = mixed(outputs[-2]) + 1.0 * mixed(outputs[0]) + 0.5 * torch.stack(semantic)
    return tokens.T.unflatten(-1, (height, width))


def test_equals_the_formula_on_a_window_that_is_not_square() -> None:
    image, ids = torch.rand(1, 3, 112, 48), torch.from_numpy(blocks(112, 48, lowest=1))[None]
    scorer = build(merge_within=-1.0)
    assert len(ids.unique()) == 4
    torch.testing.assert_close(
        scorer.features(image, ids).grid[0], slow_features(scorer, image, ids), atol=1e-4, rtol=1e-4
    )


def test_branches_count() -> None:
    image, ids = torch.rand(1, 3, 56, 56), torch.from_numpy(blocks(56, 56))[None].long()
    plain, main, spatial, semantic = (
        build(spatial_weight=a, semantic_weight=b).features(image, ids).grid
        for a, b in ((1.0, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 0.5))
    )
    torch.testing.assert_close(plain, spatial + semantic - main, atol=1e-4, rtol=1e-4)
    assert min(float((each - main).abs().max()) for each in (spatial, semantic)) > 1e-2
    assert [published_spatial_blocks(depth) for depth in (3, 6, 12, 24, 32)] == [1, 2, 5, 12, 28]


def test_regions_vote_at_the_end() -> None:
    hw = (70, 109)
    regions = blocks(*hw, lowest=1)
    scorer = build()
    labels = SegmentationHead()(scorer(scorer.prepare([random_image(*hw)], [regions]), random_bank(), hw))[0]
    for region in np.unique(regions):
        assert len(np.unique(labels.labels[regions == region])) == 1
    assert not build(voting=False).refine


def test_sam_is_asked_once_for_an_image() -> None:
    class Sam(torch.nn.Module):
        calls = 0

        def automatic_masks(self, image: np.ndarray, **options: object) -> list[dict]:
            Sam.calls += 1
            left = np.zeros(image.shape[:2], bool)
            left[:, : image.shape[1] // 2] = True
            return [{"segmentation": left, "area": int(left.sum())}]

    scorer = build(Sam())
    images = [random_image(70, 109), random_image(70, 109, seed=1)]
    labels = SegmentationHead()(scorer(scorer.prepare(images), random_bank(), (70, 109)))
    assert Sam.calls == 2
    assert all(len(np.unique(each.labels[:, :54])) == 1 for each in labels)


def test_messages() -> None:
    scorer = build()
    with pytest.raises(ConfigError, match="give region maps"):
        scorer.encode(scorer.prepare([random_image(70, 109)]))
    with pytest.raises(ConfigError, match="1 to 1 for 3 blocks"):
        build(spatial_blocks=4)
