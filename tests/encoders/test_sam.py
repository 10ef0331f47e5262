"""SAM stepped through in pieces against segment_anything's own predictor and mask generator."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from sam_support import tiny_sam
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import ImageEncoderViT, Sam
from support import random_image
from torch import nn

from ovseg import sam_structures
from ovseg.encoders.sam import SamEncoder, input_size, open_block
from ovseg.errors import CheckpointError, ConfigError, ShapeError

close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)
SHAPES = [(45, 90), (90, 45), (64, 64), (37, 200), (7, 300)]


def predictor(encoder: SamEncoder, image: np.ndarray) -> SamPredictor:
    known = SamPredictor(encoder.sam)
    known.set_image(image)
    return known


@pytest.mark.parametrize("rel_pos", [True, False])
@pytest.mark.parametrize("size_hw", SHAPES)
def test_embedding_equals_the_library(size_hw: tuple[int, int], rel_pos: bool) -> None:
    encoder, image = tiny_sam(rel_pos=rel_pos), random_image(*size_hw)
    embedded = encoder.embed([image])
    known = predictor(encoder, image)
    close(embedded.embedding, known.features)
    assert embedded.input_hw == known.input_size
    assert embedded.image_hw == size_hw
    assert embedded.attention is None
    assert not embedded.embedding.requires_grad


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, image = tiny_sam(), random_image(45, 90)
    whole = encoder.embed([image], attention=True)
    monkeypatch.setitem(sam_structures.CHUNK_ELEMENTS, "cpu", 5 * 64)
    pieces = encoder.embed([image], attention=True)
    assert pieces.attention is not None
    assert pieces.attention.rows_at_once == 5
    close(pieces.embedding, whole.embedding)


@pytest.mark.parametrize("rel_pos", [True, False])
def test_attention_is_that_of_the_last_block(rel_pos: bool) -> None:
    encoder = tiny_sam(rel_pos=rel_pos)
    block = encoder.trunk.blocks[-1]
    tokens = torch.randn(2, 8, 8, 32)
    seen: list[torch.Tensor] = []
    handle = block.attn.proj.register_forward_hook(lambda *call: seen.append(call[1][0]))
    with torch.no_grad():
        block(tokens)
        ours = open_block(block, tokens).mix()
    handle.remove()
    close(ours.transpose(1, 2).flatten(2), seen[0].flatten(1, 2))
    weights = open_block(block, tokens).weights(1, 0, slice(3, 9))
    assert weights.shape == (6, 64)
    close(weights.sum(dim=1), torch.ones(6))


def test_a_batch_equals_one_by_one() -> None:
    encoder = tiny_sam()
    images = [random_image(45, 90, seed) for seed in range(3)]
    together = encoder.embed(images, attention=True)
    assert len(together) == 3
    for index, image in enumerate(images):
        close(together.embedding[index], encoder.embed([image]).embedding[0])


def test_valid_cells_leave_the_padding_out() -> None:
    encoder = tiny_sam()
    assert encoder.valid_hw(encoder.embed([random_image(45, 90)])) == (4, 8)
    assert encoder.valid_hw(encoder.embed([random_image(300, 7)])) == (8, 1)
    assert input_size((1, 4000), 1024) == (1, 1024)


PROMPTS = {
    "points": torch.tensor([[[10.0, 20.0]], [[30.0, 5.0]], [[3.0, 5.0]]]),
    "boxes": torch.tensor([[0.0, 0, 20, 20], [10, 3, 40, 30], [1, 1, 5, 5]]),
    "masks": torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize(
    "kinds", [("points",), ("boxes",), ("masks",), ("points", "boxes"), ("points", "boxes", "masks")]
)
def test_decoding_equals_the_library(kinds: tuple[str, ...], multimask: bool) -> None:
    encoder, image = tiny_sam(), random_image(45, 90)
    known = predictor(encoder, image)
    given = {kind: PROMPTS[kind] for kind in kinds}
    masks, iou, low_res = known.predict_torch(
        given.get("points"),
        torch.ones(3, 1) if "points" in given else None,
        given.get("boxes"),
        given.get("masks"),
        multimask_output=multimask,
        return_logits=True,
    )
    embedded = encoder.embed([random_image(45, 90, 1), image])
    ours, quality = encoder.decode(embedded, 1, multimask=multimask, **given)
    close(ours, low_res)
    close(quality, iou)
    close(encoder.upscale(ours, embedded), masks)
    assert encoder.upscale(ours, embedded, (20, 30)).shape[-2:] == (20, 30)


def test_labels_and_a_mask_for_each_prompt() -> None:
    encoder, image = tiny_sam(), random_image(45, 90)
    known, embedded = predictor(encoder, image), encoder.embed([image])
    labels = torch.tensor([[1], [0], [1]])
    masks = torch.randn(3, 1, 32, 32)
    _, _, low_res = known.predict_torch(
        PROMPTS["points"], labels, None, masks, multimask_output=False, return_logits=True
    )
    ours, _ = encoder.decode(embedded, 0, points=PROMPTS["points"], point_labels=labels, masks=masks)
    close(ours, low_res)


def test_many_prompts_come_a_few_at_a_time() -> None:
    encoder, image = tiny_sam(), random_image(45, 90)
    embedded = encoder.embed([image])
    points = torch.rand(19, 1, 2) * 60
    masks = torch.randn(19, 1, 32, 32)
    together, _ = encoder.decode(embedded, 0, points=points, masks=masks)
    for each in (0, 8, 18):
        alone, _ = encoder.decode(embedded, 0, points=points[each : each + 1], masks=masks[each : each + 1])
        close(together[each], alone[0])


def test_published_mask_prompt_normalises_over_height() -> None:
    encoder, image = tiny_sam(), random_image(45, 90)
    known, embedded = predictor(encoder, image), encoder.embed([image])
    masks = torch.randn(1, 1, 64, 64)[:, :, :32, :32]
    _, _, low_res = known.predict_torch(
        PROMPTS["points"], torch.ones(3, 1), None, masks[0], multimask_output=False, return_logits=True
    )
    ours = partial(encoder.decode, embedded, 0, points=PROMPTS["points"], masks=masks)
    close(ours(as_published=True)[0], low_res)
    assert (ours()[0] - low_res).abs().max() > 1e-3


def test_no_prompt_is_an_error() -> None:
    encoder = tiny_sam()
    with pytest.raises(ConfigError, match="give points, boxes or masks"):
        encoder.decode(encoder.embed([random_image(45, 90)]), 0)


@pytest.mark.parametrize("image", [random_image(45, 90), np.full((37, 200, 3), 99, np.uint8)])
def test_automatic_masks_equal_the_library(image: np.ndarray) -> None:
    encoder = tiny_sam()
    options = {"points_per_side": 4, "pred_iou_thresh": -10.0, "stability_score_thresh": 0.0}
    ours = encoder.automatic_masks(image, **options)
    known = SamAutomaticMaskGenerator(encoder.sam, **options).generate(image)
    assert len(ours) == len(known) > 0
    for mine, theirs in zip(ours, known, strict=True):
        assert mine["segmentation"].shape == image.shape[:2]
        assert (mine["segmentation"] == theirs["segmentation"]).all()
    assert encoder.automatic_masks(image, points_per_side=4, pred_iou_thresh=100.0) == []


def test_as_a_guide_the_picture_fills_the_frame() -> None:
    encoder = tiny_sam()
    image = torch.rand(2, 3, 24, 40)
    features = encoder(image)
    assert features.grid.shape == (2, 16, 8, 8)
    assert features.prefix.shape == (2, 0, 16)
    assert features.image_hw == (24, 40)
    stretched = torch.nn.functional.interpolate(image * 255, size=(64, 64), mode="bilinear")
    with torch.no_grad():
        close(features.grid, encoder.trunk(encoder.sam.preprocess(stretched)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tower(dtype: torch.dtype) -> None:
    encoder, image = tiny_sam(), random_image(45, 90)
    full = encoder.embed([image])
    points = PROMPTS["points"]
    expected, _ = encoder.decode(full, 0, points=points)
    encoder.trunk.to(dtype)
    embedded = encoder.embed([image], attention=True)
    assert embedded.embedding.dtype == dtype
    ours, _ = encoder.decode(embedded, 0, points=points)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, rtol=0.1, atol=0.1)
    assert encoder(torch.rand(1, 3, 24, 40)).grid.dtype == dtype
    assert encoder.automatic_masks(
        image, points_per_side=2, pred_iou_thresh=-10.0, stability_score_thresh=0.0
    )


def test_what_cannot_be() -> None:
    encoder = tiny_sam(global_blocks=(1,))
    with pytest.raises(ConfigError, match="last block"):
        encoder.embed([random_image(45, 90)], attention=True)
    assert encoder.embed([random_image(45, 90)]).attention is None
    with pytest.raises(ShapeError, match="one size"):
        encoder.embed([random_image(45, 90), random_image(90, 45)])
    with pytest.raises(ShapeError, match="one size"):
        encoder.embed([])
    with pytest.raises(CheckpointError, match="ViT-B"):
        SamEncoder(Sam(nn.Identity(), encoder.sam.prompt_encoder, encoder.sam.mask_decoder))


def test_flat_image_is_finite() -> None:
    encoder = tiny_sam()
    embedded = encoder.embed([np.full((37, 2000, 3), 128, np.uint8)], attention=True)
    assert embedded.embedding.isfinite().all()
    assert isinstance(encoder.trunk, ImageEncoderViT)
