"""Trident on small random towers: sizes, batches, layout, memory."""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np
import pytest
import timm.models.vision_transformer
import torch
from sam_support import tiny_sam
from support import random_bank, random_image, tiny_encoder

from ovseg import sam_structures
from ovseg.encoders.dino import DinoEncoder
from ovseg.errors import ConfigError
from ovseg.heads import SegmentationHead
from ovseg.methods.trident import TridentScorer, fitted_hw, lay_out, trident
from ovseg.refine.sam_masks import SamMasks

close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


def tiny_guide(patch: int = 16) -> DinoEncoder:
    torch.manual_seed(2)
    trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=64, patch_size=patch, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return DinoEncoder(trunk).eval()


def build(patch: int = 16, **changes) -> TridentScorer:
    options = {"short_side": 64, "crop": 64, "stride": 32, "min_area_px": 20, "min_iou": -100.0}
    return trident(tiny_encoder(), tiny_guide(patch), tiny_sam(), **(options | changes))


@pytest.mark.parametrize(
    ("image_hw", "expected"),
    [
        ((112, 149), (128, 160)),
        ((137, 112), (144, 128)),
        ((336, 448), (336, 448)),
        ((38, 2048), (112, 2048)),
        ((112, 113), (128, 128)),
    ],
)
def test_sides_become_whole_patches(image_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fitted_hw(image_hw, (16, 16), 112) == expected


def test_published_sizes_that_fit_stay_small() -> None:
    assert fitted_hw((64, 2048), (16, 16), 112, as_published=True) == (64, 2048)
    assert fitted_hw((64, 2048), (16, 16), 112) == (112, 2048)


def test_windows_are_laid_out_and_overlaps_averaged() -> None:
    windows = torch.stack([torch.full((1, 2, 2), value) for value in (1.0, 3.0)])[None]
    boxes = [(0, 0, 16, 16), (0, 8, 16, 24)]
    canvas = lay_out(windows, boxes, (16, 24), (8, 8))
    assert canvas.tolist() == [[[[1.0, 2.0, 3.0]] * 2]]
    finer = torch.nn.functional.interpolate(windows[0], scale_factor=2)[None]
    assert lay_out(finer, boxes, (16, 24), (8, 8)).tolist() == [[[[1.0, 1, 2, 2, 3, 3]] * 4]]
    odd = torch.nn.functional.interpolate(windows[0], size=(3, 3))[None]  # no whole fraction of a patch
    assert lay_out(odd, boxes, (16, 24), (8, 8)).shape[-2:] in ((2, 3), (4, 6))


@pytest.mark.parametrize("patch", [16, 8])
@pytest.mark.parametrize("size_hw", [(45, 90), (90, 45)])
def test_a_score_map_of_the_whole_image(size_hw: tuple[int, int], patch: int) -> None:
    scorer, image = build(patch), random_image(*size_hw)
    pictures = scorer.prepare([image])
    features = scorer.encode(pictures, size_hw)
    valid_hw = (4, 8) if size_hw[0] < size_hw[1] else (8, 4)
    assert features.grid.shape == (1, 32, *valid_hw)
    close(features.grid.norm(dim=1), torch.ones(1, *valid_hw))
    assert features.sam.attention is None
    assert features.pictures is pictures
    canvas = scorer.splice(scorer.fit(pictures.image))
    assert canvas.shape[-2:] == tuple(side // patch for side in scorer.fit(pictures.image).shape[-2:])
    score_map = scorer(pictures, random_bank(), size_hw)
    assert score_map.image_hw == size_hw
    assert SegmentationHead()(score_map)[0].labels.shape == size_hw


@pytest.mark.parametrize("options", [{}, {"halves": True}, {"cosine_factor": 0.0}, {"as_published": True}])
@pytest.mark.parametrize(
    "image",
    [np.full((45, 90, 3), 128, np.uint8), random_image(37, 2000), random_image(300, 7), random_image(1, 1)],
    ids=["flat", "37x2000", "300x7", "1x1"],
)
def test_any_image_is_finite(image: np.ndarray, options: dict) -> None:
    scorer = build(**options)
    size_hw = image.shape[:2]
    score_map = scorer(scorer.prepare([image]), random_bank(), size_hw)
    assert score_map.cosine.isfinite().all()
    result = SegmentationHead()(score_map)[0]
    assert result.labels.shape == size_hw
    assert np.isfinite(result.confidence).all()


@pytest.mark.parametrize("halves", [False, True])
def test_a_batch_equals_one_by_one(halves: bool) -> None:
    scorer, bank, head = build(halves=halves, max_batch=3), random_bank(), SegmentationHead()
    images = [random_image(45, 90, seed) for seed in range(3)]
    together = scorer(scorer.prepare(images), bank, (45, 90))
    labels = head(together)
    for index, image in enumerate(images):
        alone = scorer(scorer.prepare([image]), bank, (45, 90))
        close(together.cosine[index], alone.cosine[0])
        assert (labels[index].labels != head(alone)[0].labels).mean() <= 0.002


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    image = random_image(45, 90)
    whole = build().encode(build().prepare([image]))
    monkeypatch.setitem(sam_structures.CHUNK_ELEMENTS, "cpu", 3 * 64)
    scorer = build(max_batch=1)
    close(scorer.encode(scorer.prepare([image])).grid, whole.grid)


def test_sam_sees_the_image_as_given() -> None:
    scorer, image = build(), random_image(200, 320)
    seen = scorer.encode(scorer.prepare([image])).sam
    assert seen.image_hw == (208, 320)
    enlarged = cv2.resize(image, (320, 208), interpolation=cv2.INTER_LINEAR)
    close(seen.embedding, scorer.sam.embed([enlarged]).embedding)


def test_halves_do_not_see_each_other() -> None:
    scorer, left = build(halves=True), random_image(64, 64, 1)
    grids = []
    for seed in (2, 3):
        image = np.concatenate([left, random_image(64, 64, seed)], axis=1)
        canvas = torch.ones(1, 64, 4, 8)
        canvas[..., :4] = torch.rand(1, 64, 4, 4, generator=torch.Generator().manual_seed(0))
        canvas[..., 4:] = float(seed)
        pooled, _ = scorer.average(canvas, image)
        grids.append(pooled)
    assert grids[0].shape[-2:] == (8, 16)
    close(grids[0][..., :8], grids[1][..., :8])
    assert (grids[0][..., 8:] - grids[1][..., 8:]).abs().max() > 0.5


def test_refinement_is_a_step_and_optional() -> None:
    assert isinstance(build().refine[0], SamMasks)
    assert len(build(sam_refinement=False).refine) == 0
    published = build(as_published=True)
    assert published.refine[0].as_published
    assert published.positions.as_published


@pytest.mark.parametrize("option", [{"crop": 72, "stride": 64}, {"crop": 64, "stride": 24}])
def test_windows_lie_on_patches(option: dict) -> None:
    with pytest.raises(ConfigError, match="multiple of the patch 16x16"):
        build(**option)


def test_whole_image_as_one_window() -> None:
    scorer = build(crop=None, stride=None)
    assert scorer.encode(scorer.prepare([random_image(45, 90)])).grid.isfinite().all()


def test_half_precision_towers() -> None:
    scorer, image = build(), random_image(45, 90)
    full = scorer.encode(scorer.prepare([image])).grid
    for tower in (scorer.encoder.visual, scorer.guide.trunk, scorer.sam.trunk):
        tower.to(torch.bfloat16)
    half = scorer.encode(scorer.prepare([image]))
    assert half.grid.dtype == torch.float32
    assert (half.grid * full).sum(dim=1).mean() > 0.99
    assert SegmentationHead()(scorer(scorer.prepare([image]), random_bank()))[0].labels.shape == (64, 128)
