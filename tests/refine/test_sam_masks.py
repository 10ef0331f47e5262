"""Regions to prompts, masks to labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sam_support import tiny_sam
from support import random_image
from torch import Tensor, nn

from ovseg.encoders.sam import SamImage
from ovseg.errors import ConfigError
from ovseg.heads import SegmentationHead
from ovseg.refine.sam_masks import SamMasks
from ovseg.resampling import Resampling
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures, Pictures, TextBank

SIZE = (40, 64)


class ScriptedSam(nn.Module):
    """Answers with given masks, and remembers what it was asked."""

    def __init__(self, answers: list[tuple[Tensor, list[float]]]) -> None:
        super().__init__()
        self.answers = answers
        self.asked: list[dict[str, Any]] = []

    def embed(self, images: Any) -> SamImage:
        height, width = images[0].shape[:2]
        factor = 64 / max(height, width)
        return SamImage(
            torch.zeros(len(images), 4, 8, 8),
            (round(height * factor), round(width * factor)),
            (height, width),
        )

    def decode(self, embedded: SamImage, index: int, **prompt: Any) -> tuple[Tensor, Tensor]:
        call = len(self.asked)
        self.asked.append(prompt)
        quality = self.answers[call][1]
        assert len(quality) == len(prompt["boxes"])
        return torch.full((len(quality), 1, 4, 4), float(call)), torch.tensor(quality)[:, None]

    def upscale(self, low_res: Tensor, embedded: SamImage, size_hw: tuple[int, int]) -> Tensor:
        pictures = [self.answers[int(each[0, 0, 0])][0] for each in low_res]
        assert pictures[0].shape == size_hw
        return torch.stack(pictures)[:, None]


def block_map(classes: np.ndarray, confidence: float = 0.9) -> ScoreMap:
    """A score map whose probabilities are `confidence` for the class of each pixel."""
    count = int(classes.max()) + 1
    rest = (1 - confidence) / (count - 1)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(classes), count).permute(2, 0, 1)
    cosine = torch.log(rest + one_hot * (confidence - rest)).float()
    bank = TextBank(torch.eye(count), torch.arange(count), tuple(f"c{i}" for i in range(count)))
    return ScoreMap(cosine[None], bank, 1.0, Resampling.bilinear(SIZE, SIZE))


def features(image: np.ndarray | None = None) -> DenseFeatures:
    image = random_image(*SIZE) if image is None else image
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    return DenseFeatures(
        torch.zeros(1, 4, 2, 3), Resampling.bilinear((2, 3), SIZE), pictures=Pictures(pixels, (image,))
    )


def two_squares() -> np.ndarray:
    classes = np.zeros(SIZE, np.int64)
    classes[4:12, 4:12] = 1
    classes[12:20, 20:36] = 1
    classes[2:10, 30:38] = 2
    return classes


def logits(where: tuple[slice, slice], value: float = 4.0) -> Tensor:
    picture = torch.full(SIZE, -4.0)
    picture[where] = value
    return picture


def test_prompts_are_points_boxes_and_masks() -> None:
    sam = ScriptedSam([])
    step = SamMasks(sam, min_area_px=10)
    classes, seen = two_squares(), sam.embed([random_image(*SIZE)])
    prompts = step.prompts(seen, block_map(classes), torch.from_numpy(classes))
    assert [each.label for each in prompts] == [0, 1, 2]
    one = prompts[1]
    assert one.boxes.shape == (2, 4)
    scale = 2.0  # SAM's input is 64 wide, half the picture 32
    torch.testing.assert_close(one.boxes / scale, torch.tensor([[2.0, 2, 5, 5], [10, 6, 17, 9]]))
    torch.testing.assert_close(one.points[:, 0] / scale, torch.tensor([[2.0, 2], [10, 6]]))  # first of equals
    assert one.mask.shape == (1, 1, 32, 32)
    assert (one.mask[..., 20:, :] == 0).all()  # below the image there is padding
    assert one.mask.max() == pytest.approx(0.9 * 0.005)
    assert one.regions.max() == 2
    assert (one.regions > 0).sum() == 16 + 32


def test_small_and_unsure_regions_are_not_asked_about() -> None:
    sam, classes = ScriptedSam([]), two_squares()
    seen, labels = sam.embed([random_image(*SIZE)]), torch.from_numpy(classes)
    prompts = SamMasks(sam, min_area_px=17).prompts(seen, block_map(classes), labels)
    assert [(each.label, len(each.boxes)) for each in prompts] == [(0, 1), (1, 1)]
    assert SamMasks(sam, min_area_px=10**4).prompts(seen, block_map(classes), labels) == []
    unsure = block_map(classes, confidence=0.5)
    assert SamMasks(sam, min_area_px=10, coarse_threshold=0.6).prompts(seen, unsure, labels) == []


def test_diagonal_neighbours_are_one_region() -> None:
    classes = np.zeros(SIZE, np.int64)
    classes[4:8, 4:8] = 1
    classes[8:12, 8:12] = 1
    sam = ScriptedSam([])
    prompts = SamMasks(sam, min_area_px=5).prompts(
        sam.embed([random_image(*SIZE)]), block_map(classes), torch.from_numpy(classes)
    )
    assert len(prompts[1].boxes) == 1


def revised(sam: ScriptedSam, classes: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    step = SamMasks(sam, min_area_px=10, **options)
    result = SegmentationHead()(step(block_map(classes), features()))[0]
    assert result.confidence is not None
    return result.labels, result.confidence


def test_trusted_masks_redraw_the_labels() -> None:
    classes = two_squares()
    wide = (slice(2, 14), slice(2, 14))  # grows the first square
    sam = ScriptedSam(
        [
            (logits((slice(0, 0), slice(0, 0))), [0.9]),  # background: trusted, and empty
            (logits(wide, 1.0), [0.9, 0.9]),
            (logits((slice(0, 0), slice(0, 0))), [0.1]),
        ]
    )
    labels, confidence = revised(sam, classes)
    expected = classes.copy()
    expected[wide] = 1
    assert (labels == expected).all()
    sigmoid = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(confidence[6:10, 6:10], 0.9 * sigmoid, rtol=1e-5)
    np.testing.assert_allclose(confidence[2, 2], 0.05 * sigmoid, rtol=1e-5)
    np.testing.assert_allclose(confidence[20:, :], 0.9, rtol=1e-5)


@pytest.mark.parametrize(("as_published", "kept"), [(False, 2), (True, 0)])
def test_a_rejected_region_that_is_surer_stays(as_published: bool, kept: int) -> None:
    classes = two_squares()
    everywhere = (slice(None), slice(None))
    sam = ScriptedSam(
        [(logits(everywhere, 0.5), [0.9]), (logits(everywhere), [0.0, 0.0]), (logits(everywhere), [0.0])]
    )
    labels, confidence = revised(sam, classes, as_published=as_published)
    square = slice(2, 10), slice(30, 38)
    assert (labels[square] == kept).all()
    if not as_published:
        assert (labels == classes).all()
        np.testing.assert_allclose(confidence[square], 0.9, rtol=1e-5)


def test_nothing_trusted_changes_nothing() -> None:
    classes = two_squares()
    everywhere = (slice(None), slice(None))
    sam = ScriptedSam([(logits(everywhere), [0.0] * n) for n in (1, 2, 1)])
    for as_published in (False, True):
        sam.asked.clear()
        labels, confidence = revised(sam, classes, as_published=as_published)
        assert (labels == classes).all()
        np.testing.assert_allclose(confidence, 0.9, rtol=1e-5)
        assert all(each["as_published"] is as_published for each in sam.asked)


def test_a_real_decoder_after_the_threshold() -> None:
    sam, classes = tiny_sam(), two_squares()
    step = SamMasks(sam, min_area_px=10, min_iou=-100.0)
    score_map, image = block_map(classes, confidence=0.4), random_image(*SIZE)
    refined = step(score_map, features(image))
    assert refined.cosine is score_map.cosine
    for size_hw in (SIZE, (31, 47)):
        result = SegmentationHead()(refined, size_hw)[0]
        assert result.labels.shape == size_hw
        assert np.isfinite(result.confidence).all()
        assert result.confidence.min() >= 0
        assert result.confidence.max() <= 1
    plain, redrawn = SegmentationHead()(score_map)[0], SegmentationHead()(refined)[0]
    assert (redrawn.confidence < plain.confidence).any()


def test_void_and_flat_pictures() -> None:
    sam = tiny_sam()
    flat = block_map(np.arange(2)[None].repeat(40, 0).repeat(32, 1), confidence=0.6)
    step = SamMasks(sam, min_area_px=10, min_iou=-100.0)
    refined = step(flat, features(np.full((*SIZE, 3), 128, np.uint8)))
    result = SegmentationHead(threshold=0.7)(refined)[0]  # all void: nothing to ask about
    assert (result.labels == result.void).all()
    strip = SegmentationHead()(refined, (1, 300))[0]
    assert strip.labels.shape == (1, 300)


def test_one_image_of_a_batch() -> None:
    sam = tiny_sam()
    maps = [block_map(two_squares()), block_map(two_squares()[::-1].copy(), confidence=0.7)]
    images = [random_image(*SIZE, seed) for seed in (1, 2)]
    step, head = SamMasks(sam, min_area_px=10, min_iou=-100.0), SegmentationHead()
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    both = ScoreMap(
        torch.cat([each.cosine for each in maps]), maps[0].bank, 1.0, Resampling.bilinear(SIZE, SIZE)
    )
    dense = DenseFeatures(
        torch.zeros(2, 4, 2, 3),
        both.resampling,
        pictures=Pictures(pixels, tuple(images)),
        sam=sam.embed(images),
    )
    together = head(step(both, dense))
    for index, image in enumerate(images):
        alone = head(step(maps[index], features(image)))[0]
        assert (together[index].labels != alone.labels).mean() <= 0.002


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        SamMasks(tiny_sam(), coarse_threshold=2.0)
    with pytest.raises(ConfigError, match="at least 1 pixel"):
        SamMasks(tiny_sam(), min_area_px=0)
    blind = DenseFeatures(torch.zeros(1, 4, 2, 3), Resampling.bilinear((2, 3), SIZE))
    with pytest.raises(ConfigError, match="without their pictures"):
        SamMasks(tiny_sam())(block_map(two_squares()), blind)
