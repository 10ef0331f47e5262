from __future__ import annotations

import pytest
import torch
from support import random_bank, random_image, tiny_encoder, tiny_part

from ovseg.correlation import IdentityCorrelation, QueryKeyCorrelation, SelfCorrelation
from ovseg.encoders.clip import ClipEncoder
from ovseg.errors import ConfigError, ShapeError
from ovseg.methods import METHODS, build_method, options_of, parts_of
from ovseg.scorer import Scorer
from ovseg.structures import Pictures, TextBank
from ovseg.windows import WindowPlan


def test_trained_attention_equals_the_opened_block(encoder: ClipEncoder, bank: TextBank) -> None:
    image = Pictures(torch.rand(2, 3, 64, 96))
    plain = Scorer(encoder)(image, bank)
    opened = Scorer(encoder, QueryKeyCorrelation())(image, bank)
    torch.testing.assert_close(opened.cosine, plain.cosine, atol=1e-5, rtol=1e-4)


def test_cosine_is_a_cosine(encoder: ClipEncoder, bank: TextBank) -> None:
    features = Scorer(encoder).encode(Pictures(torch.rand(1, 3, 64, 96)))
    torch.testing.assert_close(features.grid.norm(dim=1), torch.ones(1, 4, 6))
    cosine = Scorer(encoder).score(features, bank).cosine
    assert cosine.abs().max() <= 1 + 1e-5
    expected = features.grid[0, :, 2, 3] @ bank.embeddings.T
    torch.testing.assert_close(cosine[0, :, 2, 3], expected)


def test_text_of_another_model_is_refused(encoder: ClipEncoder) -> None:
    with pytest.raises(ShapeError, match="same model"):
        Scorer(encoder)(Pictures(torch.rand(1, 3, 64, 64)), random_bank(dim=8))


def test_batches_take_one_size(encoder: ClipEncoder) -> None:
    with pytest.raises(ShapeError, match="group them by size"):
        Scorer(encoder).prepare([random_image(40, 50), random_image(50, 40)])


def test_window_batches_do_not_matter(encoder: ClipEncoder, bank: TextBank) -> None:
    image = Pictures(torch.rand(2, 3, 80, 130))
    few = Scorer(encoder, SelfCorrelation(), windows=WindowPlan(64, 32, max_batch=2))(image, bank)
    many = Scorer(encoder, SelfCorrelation(), windows=WindowPlan(64, 32))(image, bank)
    torch.testing.assert_close(few.cosine, many.cosine, atol=1e-5, rtol=1e-4)


def test_dropping_the_residual_matters(encoder: ClipEncoder, bank: TextBank) -> None:
    image = Pictures(torch.rand(1, 3, 64, 96))
    kept = Scorer(encoder, IdentityCorrelation())(image, bank).cosine
    dropped = Scorer(encoder, IdentityCorrelation(), residual=False)(image, bank).cosine
    assert (kept - dropped).abs().max() > 1e-3


@pytest.mark.parametrize("method", sorted(METHODS))
class TestEveryMethod:
    def build(self, method: str, **options: object) -> Scorer:
        small = {"short_side": 64}
        if options_of(method).get("crop"):
            small |= {"crop": 48, "stride": 16}
        parts = {part: tiny_part(part) for part in parts_of(method)}
        return build_method(method, tiny_encoder(), **parts, **(small | options)).eval()

    @pytest.mark.parametrize("hw", [(70, 109), (37, 700), (200, 16), (64, 64)])
    def test_odd_sizes_are_finite(self, method: str, hw: tuple[int, int]) -> None:
        scorer = self.build(method)
        m = scorer(scorer.prepare([random_image(*hw)]), random_bank(), hw)
        labels, confidence = m.labels()
        assert tuple(labels.shape) == (1, *hw)
        assert confidence.isfinite().all()
        assert (confidence > 0).all()

    def test_flat_grey_is_finite(self, method: str) -> None:
        scorer = self.build(method)
        m = scorer(Pictures(torch.full((1, 3, 64, 80), 0.5)), random_bank())
        assert m.labels()[1].isfinite().all()

    def test_alone_equals_in_a_batch(self, method: str) -> None:
        scorer = self.build(method)
        images = [random_image(70, 109, seed) for seed in range(3)]
        together = scorer(scorer.prepare(images), random_bank(), (70, 109)).labels()
        for index, image in enumerate(images):
            alone = scorer(scorer.prepare([image]), random_bank(), (70, 109)).labels()
            torch.testing.assert_close(alone[1][0], together[1][index], atol=1e-5, rtol=1e-4)
            assert (alone[0][0] == together[0][index]).float().mean() > 0.9999

    def test_whole_image(self, method: str) -> None:
        if "crop" not in options_of(method):
            pytest.skip("takes the whole image always")
        scorer = self.build(method, crop=None, stride=None)
        m = scorer(scorer.prepare([random_image(70, 109)]), random_bank(), (70, 109))
        assert m.labels()[1].isfinite().all()

    def test_published_positions_differ_only_on_reshaped_grids(self, method: str) -> None:
        if method not in ("clip", "maskclip", "sclip", "clearclip", "naclip"):
            pytest.skip("pads to another multiple, or always resamples positions")
        whole = dict(crop=None, stride=None, short_side=None)
        ours = self.build(method, **whole)
        theirs = self.build(method, **whole, as_published=True)
        square, reshaped = (Pictures(torch.rand(1, 3, *hw)) for hw in ((64, 64), (32, 128)))  # 16 patches
        assert torch.equal(ours.encode(square).grid, theirs.encode(square).grid)
        assert (ours.encode(reshaped).grid - theirs.encode(reshaped).grid).abs().max() > 1e-5


def test_unknown_names_give_the_nearest(encoder: ClipEncoder) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'naclip'"):
        build_method("naclp", encoder)
    with pytest.raises(ConfigError, match="Did you mean 'temperature'"):
        build_method("clip", encoder, temprature=3.0)
