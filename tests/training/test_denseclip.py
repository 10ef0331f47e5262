"""DenseCLIP's own parts, beyond what the golden case pins down."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support import tiny_clip

from ovseg.encoders.pyramid import PyramidFeatures
from ovseg.errors import ConfigError, VocabularyError
from ovseg.text.towers import ClipText
from ovseg.training.denseclip import PixelTextMatching, encode_prompted, name_tokens
from ovseg.training.denseclip_losses import box_score_loss, box_targets, score_map_loss

NAMES = ("dog", "traffic light", "sky")


@pytest.fixture
def text() -> ClipText:
    return ClipText(tiny_clip().model)


def tokens(contexts: int = 4) -> torch.Tensor:
    return name_tokens(tiny_clip().tokenizer, NAMES, context_length=32, contexts=contexts)


def features(images: int = 2) -> PyramidFeatures:
    generator = torch.Generator().manual_seed(1)
    levels = tuple(torch.randn(images, 8, 48 // s, 64 // s, generator=generator) for s in (1, 2, 4, 8))
    grid = torch.randn(images, 32, 12, 16, generator=generator)
    return PyramidFeatures(levels, torch.randn(images, 32, generator=generator), grid)


def matching(**options: object) -> PixelTextMatching:
    torch.manual_seed(2)
    decoder = dict(width=16, heads=2, layers=2)
    built = PixelTextMatching(32, 32, contexts=4, decoder=decoder, **options)
    with torch.no_grad():  # as initialised, so small a decoder hardly says anything
        for parameter in built.context_decoder.parameters():
            parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
    return built


def test_contexts_of_words_are_words(text: ClipText) -> None:
    """With the embeddings of 'a photo of' as contexts, a name is encoded as that sentence."""
    clip = tiny_clip()
    words = text.token_embedding(clip.tokenizer(["a photo of"]).long())[:, 1:4]
    found = encode_prompted(text, tokens(3), words)[0]
    sentences = clip.tokenizer([f"a photo of {name}" for name in NAMES])
    torch.testing.assert_close(found, text(sentences.long()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("prompting", ["post", "pre"])
def test_what_is_trained_gets_gradients_and_the_tower_none(text: ClipText, prompting: str) -> None:
    model = matching(prompting=prompting, gamma=0.1).train()
    found = model(features(), text, tokens(), dense_level=2)
    score_map_loss(found.cosine, torch.randint(0, 3, (2, 48, 64))).backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in model.parameters())
    assert all(each.grad is None for each in text.parameters())


@torch.no_grad()
@pytest.mark.parametrize("prompting", ["post", "pre"])
def test_words_depend_on_their_own_image_only(text: ClipText, prompting: str) -> None:
    model = matching(prompting=prompting, gamma=1.0).eval()
    both, one = features(), features()
    alone = PyramidFeatures(tuple(level[1:] for level in one.levels), one.image[1:], one.grid[1:])
    found = model(both, text, tokens(), dense_level=2)
    torch.testing.assert_close(
        found.cosine[1:], model(alone, text, tokens(), dense_level=2).cosine, atol=1e-5, rtol=0
    )
    assert (found.words[0] - found.words[1]).abs().max() > 1e-3
    order = [2, 0, 1]
    permuted = model(both, text, tokens()[order], dense_level=2)
    torch.testing.assert_close(permuted.cosine, found.cosine[:, order], atol=1e-5, rtol=0)


def test_what_goes_to_the_decoder(text: ClipText) -> None:
    both = features()
    cosine = matching()(both, text, tokens(), dense_level=2)
    assert [level.shape[1] for level in cosine.levels] == [8, 8, 11, 8]
    assert cosine.cosine.abs().max() <= 1 + 1e-5
    torch.manual_seed(0)
    logits = matching(appended="logits", temperature=20.0).eval()(both, text, tokens(), dense_level=2)
    torch.testing.assert_close(logits.levels[2][:, 8:], 20 * logits.cosine)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="prompting must be"):
        matching(prompting="both")
    clip = tiny_clip()
    with pytest.raises(VocabularyError, match=r"'dog dog .* \(\d+ tokens\)"):
        name_tokens(clip.tokenizer, ["dog " * 30], context_length=32, contexts=8)
    with pytest.raises(VocabularyError, match="no classes"):
        name_tokens(clip.tokenizer, [], context_length=32, contexts=8)
    with pytest.raises(ConfigError, match="3 heads"):
        PixelTextMatching(32, 32, decoder=dict(width=16, heads=3))


def test_score_map_loss_leaves_out_ignored_pixels() -> None:
    cosine = torch.rand(1, 3, 6, 8)
    labels = torch.randint(0, 3, (1, 12, 16))
    half = labels.clone()
    half[:, :, 8:] = 255
    upsampled = F.interpolate(cosine * 10.0, (12, 16), mode="bilinear")
    expected = F.cross_entropy(upsampled[..., :8], labels[..., :8])
    torch.testing.assert_close(score_map_loss(cosine, half, temperature=10.0, weight=1.0), expected)
    nothing = score_map_loss(cosine, torch.full_like(labels, 255))
    assert nothing == 0


def test_boxes_cover_what_they_touch() -> None:
    boxes = [torch.tensor([[1.0, 2.0, 2.0, 3.0], [12.0, 4.0, 24.0, 16.0]])]
    kinds = [torch.tensor([0, 1])]
    target, mask = box_targets(boxes, kinds, classes=2, image_hw=(16, 24))
    assert target[0, 0].nonzero().tolist() == [[0, 0]]
    assert target[0, 1].sum() == 3 * 3
    assert torch.equal(mask[0, 0], target[0].amax(dim=0))
    published, _ = box_targets(boxes, kinds, classes=2, image_hw=(16, 24), as_published=True)
    assert published[0, 0].sum() == 0, "boxes below a cell vanish"
    assert published[0, 1].sum() == 2 * 2, "and the last row and column are never reached"


def test_box_loss() -> None:
    cosine = torch.rand(1, 2, 2, 3)
    empty = box_targets([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)], classes=2, image_hw=(16, 24))
    assert box_score_loss(cosine, *empty) == 0
    target, mask = box_targets(
        [torch.tensor([[0.0, 0.0, 8.0, 16.0]])], [torch.tensor([1])], classes=2, image_hw=(16, 24)
    )
    loss = box_score_loss(cosine, target, mask, temperature=5.0)
    logits = F.interpolate(cosine * 5.0, (4, 6), mode="bilinear")[..., :2]
    truth = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand_as(logits)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(logits, truth))
