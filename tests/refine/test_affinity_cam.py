from __future__ import annotations

import torch

from ovseg.refine.affinity_cam import peak_boxes, spread_cams, transitions


def test_transitions_are_symmetric_shares() -> None:
    attention = torch.randn(4, 15, 15).softmax(dim=-1)
    walk = transitions(attention, rounds=50)
    torch.testing.assert_close(walk, walk.T)
    torch.testing.assert_close(walk.sum(dim=1), torch.ones(15), atol=1e-4, rtol=1e-4)
    assert (walk >= 0).all()
    # of layers only the mean counts
    torch.testing.assert_close(transitions(attention.mean(dim=0, keepdim=True), rounds=50), walk)


def test_boxes_enclose_every_peak() -> None:
    cam = torch.zeros(6, 9)
    cam[1, 1] = cam[2, 2] = 0.9  # one region: they touch at a corner
    cam[5, 8] = 1.0
    cam[0, 6] = 0.5  # below the threshold
    inside = peak_boxes(cam, 0.79)
    assert inside.nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2], [5, 8]]
    published = peak_boxes(cam, 0.79, as_published=True)
    assert published.nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]


def test_a_map_without_peaks_has_no_box() -> None:
    assert not peak_boxes(torch.zeros(4, 5), 0.79).any()


def test_only_what_is_inside_spreads() -> None:
    cams = torch.rand(2, 3, 5)
    cams[0, 1, 2], cams[1, 2, 4] = 1.0, 1.0
    attention = torch.randn(3, 15, 15).softmax(dim=-1)
    ours = spread_cams(cams, attention)
    walk = transitions(attention)
    for cam, each in zip(cams, ours, strict=True):
        kept = (cam * peak_boxes(cam, 0.79)).flatten()
        torch.testing.assert_close(each.flatten(), walk @ kept)
        torch.testing.assert_close(spread_cams(cam[None], attention)[0], each)
