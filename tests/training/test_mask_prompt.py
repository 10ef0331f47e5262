"""The loss of a mask-adapted CLIP, and pictures taken apart into regions."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss

from ovseg.training.mask_prompt import pair_loss, split_regions


def pairs(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 8, generator=generator), torch.randn(count, 8, generator=generator)


def test_as_published_it_is_open_clips_loss() -> None:
    regions, texts = pairs()
    theirs = ClipLoss()(F.normalize(regions, dim=1), F.normalize(texts, dim=1), torch.tensor(20.0))
    assert torch.allclose(pair_loss(regions, texts, 20.0), theirs, atol=1e-6)
    assert torch.allclose(pair_loss(regions, texts, 20.0, torch.arange(5)), theirs, atol=1e-6)


def test_equal_nouns_are_right_for_each_other() -> None:
    texts = F.normalize(pairs()[1], dim=1)[[0, 1, 0]]
    same = torch.tensor([7, 3, 7])
    best = pair_loss(texts, texts, 100.0, same)
    assert torch.allclose(best, torch.log(torch.tensor(2.0)) * 2 / 3, atol=1e-3)  # two texts share the right
    scale = torch.full_like(texts, 1.0).requires_grad_()
    (gradient,) = torch.autograd.grad(pair_loss(texts * scale, texts, 100.0, same), scale)
    assert float(gradient.abs().max()) < 1e-3  # a perfect batch has nothing to learn
    assert float(pair_loss(texts.flip(0).roll(1, 0), texts, 100.0, same)) > float(best) + 1


def test_regions_cover_objects_and_backgrounds() -> None:
    labels = np.full((20, 30), 4)
    labels[:, 18:] = 5
    instances = np.zeros((20, 30), int)
    instances[2:9, 3:10], instances[10:16, 20:28] = 1, 2
    labels[instances == 1], labels[instances == 2] = 2, 2
    regions, classes = split_regions(labels, instances)
    assert classes.tolist() == [4, 5, 2, 2]
    covered = sum(regions.mask(index).astype(int) for index in range(len(regions)))
    assert (covered == 1).all()
    for index, label in enumerate(classes):
        assert (labels[regions.mask(index)] == label).all()
    assert regions.boxes_xyxy[2:].tolist() == [[3.0, 2.0, 10.0, 9.0], [20.0, 10.0, 28.0, 16.0]]
    assert split_regions(labels, instances, min_area_px=49)[1].tolist() == [4, 5, 2]
    assert len(split_regions(labels, instances, min_area_px=601)[0]) == 0
