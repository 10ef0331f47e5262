from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import random_bank

from ovseg.errors import ConfigError, ShapeError
from ovseg.heads import SegmentationHead
from ovseg.heads import rejection as module
from ovseg.heads.rejection import NEEDS_NO, Evidence, Rejection, threshold_keeping
from ovseg.resampling import Resampling
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures, TextBank

RULES = ("msp", "maxlogit", "energy", "mcm", "ctw", "atd")


def score_map(bank: TextBank | None = None, batch: int = 2, seed: int = 3, **options: object) -> ScoreMap:
    bank = bank or random_bank()
    torch.manual_seed(seed)
    cosine = torch.randn(batch, len(bank.embeddings), 4, 6).tanh()
    return ScoreMap(cosine, bank, 5.0, Resampling.bilinear((4, 6), (29, 47)), **options)


def reference(rule: str, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
    """The formulas, over all classes at once `(K, H, W)`."""
    p = (yes / 5.0 if rule == "mcm" else yes).softmax(dim=0)
    u = torch.stack([yes, no]).softmax(dim=0)[0]
    best = yes.argmax(dim=0, keepdim=True)
    return {
        "msp": p.amax(dim=0),
        "mcm": p.amax(dim=0),
        "maxlogit": yes.amax(dim=0),
        "energy": yes.exp().sum(dim=0).log(),
        "ctw": u.gather(0, best)[0],
        "atd": (u * p).sum(dim=0),
    }[rule]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("over", ["query", "class"])
@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_pixels_against_the_formulas(
    rule: str, over: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "tile_elements", lambda device: at_once)
    yes, no = score_map(softmax_over=over), score_map(seed=4, softmax_over=over)
    ours = Rejection(rule, threshold=0.5).pixel_scores(yes, 1, (31, 50), no)
    full = [m.resampling.then((31, 50)).apply(m.logits[1]) for m in (yes, no)]
    if over == "class":
        groups = yes.bank.queries_of_class
        best = [full[0][each].max(dim=0, keepdim=True) for each in groups]
        other = [full[1][each].gather(0, b.indices) for each, b in zip(groups, best, strict=True)]
        full = [torch.cat([b.values for b in best]), torch.cat(other)]
    torch.testing.assert_close(ours, reference(rule, *full), atol=1e-5, rtol=1e-5)


def test_spreads_are_applied() -> None:
    plain = score_map()
    spread = replace(plain, spreads=(lambda maps: maps * 0, lambda maps: maps))
    head = Rejection("maxlogit", threshold=0.0)
    assert (head.pixel_scores(spread, 0) == 0).all()
    torch.testing.assert_close(head.pixel_scores(spread, 1), head.pixel_scores(plain, 1))


def test_permuting_classes_changes_nothing() -> None:
    yes, no = score_map(), score_map(seed=4)
    order = torch.randperm(yes.cosine.shape[1])
    bank = replace(yes.bank, class_of_query=yes.bank.class_of_query[order])
    a, b = (replace(m, cosine=m.cosine[:, order], bank=bank) for m in (yes, no))
    for rule in RULES:
        head = Rejection(rule, threshold=0.5)
        torch.testing.assert_close(head.pixel_scores(a, 0, no=b), head.pixel_scores(yes, 0, no=no))


def test_rejected_pixels_become_void_and_background_stays() -> None:
    for background in (frozenset(), frozenset({1})):
        m = score_map(random_bank(background=background))
        head = Rejection("msp", threshold=0.4)
        plain, rejected = SegmentationHead()(m)[1], SegmentationHead()(head(m))[1]
        unknown = head.pixel_scores(m, 1).numpy() < 0.4
        void = unknown & ~np.isin(plain.labels, list(background))
        assert 0 < void.mean() < 1
        assert bool(background) == (void != unknown).any()
        assert np.array_equal(rejected.labels, np.where(void, 255, plain.labels))
        assert np.array_equal(rejected.confidence, plain.confidence)


def test_an_image_of_nothing_named_is_all_void() -> None:
    m = score_map()
    assert (SegmentationHead()(Rejection("energy", threshold=1e6)(m))[0].labels == 255).all()
    assert (SegmentationHead()(Rejection("energy", threshold=-1e6)(m))[0].labels != 255).all()


def test_one_class_is_always_known_to_a_softmax_and_not_to_a_no() -> None:
    yes = score_map(random_bank((1,)))
    assert (Rejection("mcm", threshold=0.9).pixel_scores(yes) == 1).all()
    grid = torch.nn.functional.normalize(torch.randn(2, 32, 4, 6), dim=1)
    rows = torch.nn.functional.normalize(yes.bank.embeddings + torch.randn(1, 32), dim=1)
    step = Rejection("ctw")(
        replace(yes, bank=replace(yes.bank, no=rows)), DenseFeatures(grid, yes.resampling)
    )
    labels = SegmentationHead()(step)[0].labels
    gain = torch.einsum("dhw,d->hw", grid[0], yes.bank.embeddings[0] - rows[0])[None]
    better = yes.resampling.apply(gain)[0] >= 0
    assert np.array_equal(labels == 0, better.numpy())
    assert 0 < better.float().mean() < 1


def test_none_competes_as_a_class() -> None:
    yes, no = torch.randn(2, 5, 400) * 3
    p, u = yes.softmax(dim=0), (yes - no).sigmoid()
    with_none = torch.cat([p * u, 1 - (p * u).sum(dim=0, keepdim=True)])
    accepted = Evidence().add(yes, no).accepted("atd", None)
    assert torch.equal(accepted, with_none.argmax(dim=0) < 5)
    assert 0.1 < accepted.float().mean() < 0.9


def test_images_by_their_class_token() -> None:
    bank = random_bank((1, 1, 1))
    image = torch.nn.functional.normalize(torch.randn(4, 32), dim=1)
    features = DenseFeatures(torch.zeros(4, 32, 2, 3), Resampling.bilinear((2, 3), (8, 12)), image)
    score = (
        Rejection("mcm", threshold=0.5, temperature=0.1).image_evidence(features, bank, 100.0).score("mcm")
    )
    expected = (10 * image @ bank.embeddings.T).softmax(dim=1).amax(dim=1)
    torch.testing.assert_close(score, expected)
    with pytest.raises(ConfigError, match="no class token"):
        Rejection("mcm", threshold=0.5).image_evidence(replace(features, image=None), bank, 100.0)


def test_finite_and_steady_on_extreme_logits() -> None:
    yes = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]])
    for rule in RULES:
        assert Evidence().add(yes, -yes).score(rule).isfinite().all()


def test_threshold_keeps_what_it_says() -> None:
    known = np.random.default_rng(0).normal(size=200)
    threshold = threshold_keeping(known, 0.9)
    assert (known >= threshold).mean() == pytest.approx(0.9, abs=0.01)
    assert threshold_keeping(known, 1.0) == known.min()
    with pytest.raises(ConfigError, match="needs scores"):
        threshold_keeping(np.zeros(0))


def test_bad_options() -> None:
    with pytest.raises(ConfigError, match="threshold of its own"):
        Rejection("mcm")
    with pytest.raises(ConfigError, match="temperature"):
        Rejection("mcm", threshold=0.1, temperature=0.0)
    with pytest.raises(ConfigError, match="finite"):
        Rejection("msp", threshold=float("nan"))
    for rule in NEEDS_NO:
        with pytest.raises(ConfigError, match="'no' text tower"):
            Rejection(rule)(score_map(), DenseFeatures(torch.zeros(2, 32, 4, 6), score_map().resampling))
        with pytest.raises(ConfigError, match="got none"):
            Rejection(rule)(score_map())
    with pytest.raises(ShapeError, match="same words"):
        Rejection("ctw").pixel_scores(score_map(), 0, no=score_map(random_bank((1, 1)), seed=4))


def test_it_is_a_step_of_refinement() -> None:
    m = score_map()
    features = DenseFeatures(torch.zeros(2, 32, 4, 6), m.resampling)
    assert [len(chain) for chain in Rejection("msp", threshold=0.4)(m, features).revisions] == [1, 1]
