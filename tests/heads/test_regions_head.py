from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from painted import disc, painted, plain_bank
from PIL import Image, ImageFilter
from support import random_image, tiny_part

from ovseg.detection_results import Detections
from ovseg.errors import ConfigError, ImageError, ShapeError
from ovseg.heads.regions import RegionHead, describe, phrase_heat, pool_regions, refer
from ovseg.heads.visual_prompts import CLIP_MEAN_RGB, blur_reverse_masks, masked_crops
from ovseg.proposals import OBJECT, ProposalFile, sam_proposals
from ovseg.resampling import Resampling
from ovseg.rle import encode_mask
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures, TextBank
from ovseg.windows import WindowPlan

HW = (30, 44)


def regions(masks: list[np.ndarray], scores: list[float] | None = None) -> Detections:
    return sam_proposals(
        [
            dict(segmentation=m, predicted_iou=s)
            for m, s in zip(masks, scores or [1.0] * len(masks), strict=True)
        ],
        masks[0].shape,
    )


def discs() -> list[np.ndarray]:
    return [disc(HW, (10, 12), 7), disc(HW, (32, 15), 9)]


def labelled() -> np.ndarray:
    labels = np.zeros(HW, int)
    for number, mask in enumerate(discs(), start=1):
        labels[mask] = number
    return labels


def resamplings() -> list[tuple[tuple[int, int], Resampling]]:
    """Plain, and a mosaic of overlapping windows."""
    windows = WindowPlan(16, 8).windows(HW, (4, 4))
    mosaic = windows.resampling(HW, (4, 4), HW)
    return [
        ((5, 7), Resampling.bilinear((5, 7), HW)),
        ((mosaic.rows.shape[1], mosaic.cols.shape[1]), mosaic),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_pooling_is_the_mean_of_the_picture(which: int) -> None:
    hw, resampling = resamplings()[which]
    grid = torch.randn(3, *hw)
    picture = resampling.apply(grid)
    found = regions(discs())
    for pooled, mask in zip(pool_regions(grid, resampling, found), discs(), strict=True):
        torch.testing.assert_close(pooled, picture[:, torch.from_numpy(mask)].mean(dim=1))
    boxes = replace(found, masks=None)
    for pooled, box in zip(pool_regions(grid, resampling, boxes), found.boxes_xyxy.astype(int), strict=True):
        inside = picture[:, box[1] : box[3], box[0] : box[2]]
        torch.testing.assert_close(pooled, inside.mean(dim=(1, 2)))
    half = replace(boxes, boxes_xyxy=np.array([[3.5, 2, 4.5, 3]] * 2, np.float32))
    torch.testing.assert_close(pool_regions(grid, resampling, half)[0], picture[:, 2, 3:5].mean(dim=1))


def test_pooling_in_chunks_and_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hw, resampling = resamplings()[0]
    grid = torch.randn(3, *hw)
    many = regions([discs()[k % 2] for k in range(7)])
    whole = pool_regions(grid, resampling, many)
    monkeypatch.setattr("ovseg.heads.regions.tile_elements", lambda device: 1)
    torch.testing.assert_close(pool_regions(grid, resampling, many), whole)
    assert pool_regions(grid, resampling, Detections.empty(OBJECT, HW)).shape == (0, 3)
    empty = Detections(
        np.zeros((1, 4), np.float32), np.zeros(1, int), np.ones(1, np.float32), OBJECT, HW,
        (encode_mask(np.zeros(HW, bool)),),
    )  # fmt: skip
    assert (pool_regions(grid, resampling, empty) == 0).all()
    assert (pool_regions(grid, resampling, replace(empty, masks=None)) == 0).all()


def test_regions_take_the_class_inside() -> None:
    bank = plain_bank(3, background=frozenset({0}))
    m = painted(labelled(), bank)
    nowhere = np.zeros(HW, bool)
    nowhere[25:, :20] = True
    found = RegionHead()(m, [regions([*discs(), nowhere], [0.5, 0.9, 1.0])])[0]
    assert found.labels.tolist() == [2, 1]
    assert found.names == bank.names
    sure = m.labels()[1][0, 12, 10].item()
    assert found.scores.tolist() == pytest.approx([0.9 * sure, 0.5 * sure])
    assert np.array_equal(found.mask(1), discs()[0])


def features(bank: TextBank) -> DenseFeatures:
    grid = bank.embeddings[torch.from_numpy(labelled())].permute(2, 0, 1)[None]
    return DenseFeatures(grid * 1.0, Resampling.bilinear(HW, HW))


def test_features_and_crops() -> None:
    bank = plain_bank(3, background=frozenset({0}))
    m = painted(labelled(), bank, temperature=10.0)
    proposals = [regions(discs())]
    by_features = RegionHead()(m, proposals, features=features(bank))[0]
    assert sorted(by_features.labels.tolist()) == [1, 2]
    crops = [bank.embeddings[[2, 2]]]  # crops say class 2 of both
    assert RegionHead(crop_weight=1.0)(m, proposals, crops=crops)[0].labels.tolist() == [2, 2]
    plain = RegionHead()(m, proposals)[0]
    unmoved = RegionHead(crop_weight=0.0)(m, proposals, crops=crops)[0]
    assert unmoved.labels.tolist() == plain.labels.tolist()
    np.testing.assert_allclose(unmoved.scores, plain.scores, rtol=1e-5)


def test_doubles_are_suppressed_and_thresholds_count() -> None:
    bank = plain_bank(3)
    m = painted(labelled(), bank)
    twice = regions([*discs(), discs()[0]], [0.9, 0.8, 0.7])
    assert len(RegionHead()(m, [twice])[0]) == 2
    assert len(RegionHead(nms_iou=1.0)(m, [twice])[0]) == 3
    assert len(RegionHead(nms_iou=1.0, max_detections=1)(m, [twice])[0]) == 1
    assert not len(RegionHead(threshold=1.0)(m, [twice])[0])
    own = replace(m, bank=replace(bank, thresholds=(None, 1.0, None)))
    assert RegionHead()(own, [twice])[0].labels.tolist() == [2]


def test_permuting_classes_permutes_the_answer() -> None:
    m = painted(labelled(), plain_bank(3), noise=0.3)
    order = torch.tensor([1, 2, 0])
    names = tuple(m.bank.names[k] for k in order.argsort())
    permuted = replace(m, bank=replace(m.bank, names=names, class_of_query=order))
    ours, theirs = (RegionHead()(each, [regions(discs())])[0] for each in (m, permuted))
    assert [ours.names[k] for k in ours.labels] == [theirs.names[k] for k in theirs.labels]
    np.testing.assert_array_equal(ours.scores, theirs.scores)


def test_one_class_a_thousand_and_no_region() -> None:
    one = RegionHead()(painted(np.zeros(HW, int), plain_bank(1)), [regions(discs())])[0]
    assert one.scores.tolist() == [1, 1]
    labels = labelled() * 400
    many = RegionHead()(painted(labels, plain_bank(1000), temperature=20.0), [regions(discs())])[0]
    assert sorted(many.labels.tolist()) == [400, 800]
    m = painted(labelled(), plain_bank(3))
    none = RegionHead()(m, [Detections.empty(OBJECT, HW)])[0]
    assert not len(none)
    assert none.names == m.bank.names
    nothing = RegionHead()(
        replace(m, bank=replace(m.bank, background=frozenset({0, 1, 2}))), [regions(discs())]
    )
    assert not len(nothing[0])
    with pytest.raises(ShapeError, match="1 images came with proposals of 2"):
        RegionHead()(m, [none, none])


def test_attributes() -> None:
    bank = plain_bank(3)
    found = RegionHead()(painted(labelled(), bank), [regions(discs())])[0]
    words = TextBank(
        torch.stack([bank.embeddings[1], bank.embeddings[2], bank.embeddings[0]]),
        torch.arange(3),
        ("first", "second", "something"),
        background=frozenset({2}),
    )
    seen = describe(found, features(bank), words)
    assert seen.attribute_names == ("first", "second")
    for label, row in zip(seen.labels, seen.attributes, strict=True):
        assert row[label - 1] > 0.9
    cosine = bank.embeddings[1] @ bank.embeddings[2] - bank.embeddings[1] @ bank.embeddings[0]
    expected = torch.sigmoid(40 * cosine).item()
    assert seen.attributes[seen.labels == 1][0, 1] == pytest.approx(expected, abs=1e-5)
    alone = TextBank(bank.embeddings[:1], torch.arange(1), ("old",))
    np.testing.assert_allclose(describe(found, features(bank), alone).attributes, 0.5)
    none = describe(Detections.empty(bank.names, HW), features(bank), words)
    assert none.attributes.shape == (0, 2)


def test_a_phrase_finds_its_region() -> None:
    m = painted(labelled(), plain_bank(3))
    small = np.zeros(HW, bool)
    small[11:13, 9:11] = True
    proposals = regions([*discs(), np.ones(HW, bool), small])
    for label in (1, 2):
        found = refer(phrase_heat(m, label), proposals, "the ball")
        assert np.array_equal(found.mask(0), discs()[label - 1])
        assert found.names == ("the ball",)
    heat = phrase_heat(m, 1)
    by_hand = [heat[torch.from_numpy(k)].sum() / k.sum() ** 0.5 for k in (*discs(), np.ones(HW, bool), small)]
    assert int(np.argmax(by_hand)) == 0
    weighted = replace(proposals, scores=np.array([0.01, 0.01, 0.01, 1], np.float32))
    assert np.array_equal(refer(heat, weighted, "x").mask(0), small)
    assert refer(heat, replace(proposals, masks=None), "x").boxes_xyxy.tolist() == [[3, 5, 18, 20]]
    assert refer(heat, proposals, "x", area_power=0.0).boxes_xyxy[0].tolist() == [0, 0, 44, 30]
    assert not len(refer(heat, Detections.empty(OBJECT, HW), "x"))
    with pytest.raises(ShapeError, match="heat map"):
        refer(heat[1:], proposals, "x")
    with pytest.raises(ConfigError, match="no class 7"):
        phrase_heat(m, 7)


def test_heat_of_a_phrase_alone() -> None:
    bank = plain_bank(1)
    cosine = torch.linspace(0.1, 0.3, 35).view(1, 1, 5, 7)
    heat = phrase_heat(ScoreMap(cosine, bank, 40.0, Resampling.bilinear((5, 7), HW)), 0)
    assert heat.shape == HW
    assert (heat.min(), heat.max()) == (0, 1)
    flat = ScoreMap(torch.full((1, 1, 5, 7), 0.2), bank, 40.0, Resampling.bilinear((5, 7), HW))
    assert phrase_heat(flat, 0).isfinite().all()


def test_blur_reverse_masks() -> None:
    image = random_image(*HW)
    pictures = list(blur_reverse_masks(image, regions(discs()), side=44, std_px=5.0))
    assert [each.shape for each in pictures] == [(44, 44, 3)] * 2
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(5.0)))
    by_hand = np.where(discs()[0][..., None], image, blurred)
    stretched = torch.nn.functional.interpolate(
        torch.from_numpy(by_hand).permute(2, 0, 1)[None].float(), size=(44, 44), mode="bilinear"
    )[0].permute(1, 2, 0)
    assert np.abs(pictures[0].astype(float) - stretched.numpy()).max() <= 1
    assert list(blur_reverse_masks(image, Detections.empty(OBJECT, HW), side=44)) == []


def test_masked_crops() -> None:
    image = random_image(*HW)
    (picture, where), _ = masked_crops(image, regions(discs()), side=30)
    assert picture.shape == (30, 30, 3)
    crop = discs()[0][5:20, 3:18]
    assert np.array_equal(where, crop.repeat(2, 0).repeat(2, 1))
    assert (picture[0, 0] == CLIP_MEAN_RGB).all()
    assert np.abs(picture[15, 15].astype(int) - image[12, 10]).max() < 80
    boxes = replace(regions(discs()), masks=None)
    assert all(where.all() for _, where in masked_crops(image, boxes, side=30))


def test_sam_proposes() -> None:
    sam = tiny_part("sam")
    records = sam.automatic_masks(
        random_image(*HW), points_per_side=2, pred_iou_thresh=-9.0, stability_score_thresh=-9.0
    )
    found = sam_proposals(records, HW)
    assert found.names == OBJECT
    assert len(found) == sum(bool(each["segmentation"].any()) for each in records)
    assert not len(sam_proposals([], HW))


def test_proposals_from_files(tmp_path: Path) -> None:
    mask = discs()[0]
    entry = dict(bbox=[3, 5, 15, 15], score=0.4, segmentation=encode_mask(mask))
    outside = dict(bbox=[-5, -5, 4, 4], segmentation=encode_mask(mask))
    cut = dict(bbox=[40, 20, 50, 50], segmentation=encode_mask(mask))
    results = tmp_path / "results.json"
    results.write_text(json.dumps([dict(e, image_id=139) for e in (entry, outside, cut)]))
    found = ProposalFile(results)("images/000000000139.jpg", HW)
    assert found.boxes_xyxy.tolist() == [[3, 5, 18, 20], [40, 20, 44, 30]]
    assert found.scores.tolist() == pytest.approx([0.4, 1.0])
    assert np.array_equal(found.mask(0), mask)
    with pytest.raises(ImageError, match="no proposals for an image"):
        ProposalFile(results)("dog.jpg", HW)

    annotations = tmp_path / "annotations.json"
    images = [dict(id=5, file_name="a/dog.jpg"), dict(id=6, file_name="cat.jpg")]
    boxes_only = dict(image_id=5, bbox=[1, 2, 3, 4])
    annotations.write_text(json.dumps(dict(images=images, annotations=[boxes_only])))
    file = ProposalFile(annotations)
    assert file("elsewhere/dog.png", HW).masks is None
    assert not len(file("cat.png", HW))

    annotations.write_text(json.dumps([dict(image_id=1, bbox=[1, 2])]))
    with pytest.raises(ImageError, match="damaged"):
        ProposalFile(annotations)("1.png", HW)
    for content in ('{"boxes": []}', "[", '[{"bbox": [1, 2, 3, 4]}]'):
        results.write_text(content)
        with pytest.raises(ConfigError, match="proposal file"):
            ProposalFile(results)
