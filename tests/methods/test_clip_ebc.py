from __future__ import annotations

from dataclasses import replace

import open_clip
import pytest
import torch
from support import tiny_clip
from torch import nn

from ovseg.count_inferencer import CountInferencer
from ovseg.encoders.clip import DEFAULT_POSITIONS, ClipEncoder
from ovseg.encoders.clip_loading import LoadedClip
from ovseg.encoders.clip_resnet import ClipResNet
from ovseg.encoders.prompted import PromptedEncoder
from ovseg.errors import CheckpointError, ConfigError, VocabularyError
from ovseg.heads.count_bins import CountBins
from ovseg.heads.ebc import IMAGENET_MEAN
from ovseg.methods.clip_ebc import clip_ebc

BINS = CountBins.single(2, 2.3, block_px=16)


def tiny_resnet_clip() -> LoadedClip:
    model = open_clip.CLIP(
        16,
        vision_cfg=dict(image_size=64, layers=(1, 2, 1, 2), width=8, head_width=8),
        text_cfg=dict(context_length=32, vocab_size=49408, width=16, heads=2, layers=1),
    )
    torch.manual_seed(0)
    for module in model.visual.modules():  # without statistics of its own a deep random net says nothing
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
    return replace(tiny_clip(), model=model.eval().requires_grad_(False))


def test_prompts_are_seen_and_taken_out() -> None:
    encoder = ClipEncoder(tiny_clip().model.visual)
    prompted = PromptedEncoder(encoder, num_prompts=3)
    image = torch.rand(2, 3, 48, 80)
    with torch.no_grad():
        found = prompted(image)
        assert found.shape == (2, 64, 3, 5)
        nn.init.normal_(prompted.prompts)
        assert not torch.allclose(prompted(image), found, atol=1e-3)


def test_without_prompts_it_is_the_tower() -> None:
    encoder = ClipEncoder(tiny_clip().model.visual)
    image = torch.rand(1, 3, 48, 80)
    tokens, hw = encoder.embed(image, DEFAULT_POSITIONS)
    for block in encoder.tower.blocks:
        tokens = block(tokens)
    wanted = encoder.visual.ln_post(tokens[:, 1:]).mT.unflatten(-1, hw)
    plain = PromptedEncoder(encoder, num_prompts=0)
    torch.testing.assert_close(plain(image), wanted)
    assert not plain(image).requires_grad
    with pytest.raises(ConfigError, match="0 or more"):
        PromptedEncoder(encoder, num_prompts=-1)


def test_prompts_go_into_clips_own_vit_only() -> None:
    with pytest.raises(CheckpointError, match="expected a ResNet"):
        ClipResNet(tiny_clip().model.visual)
    with pytest.raises(CheckpointError, match="ModifiedResNet"):
        ClipEncoder(tiny_resnet_clip().model.visual)


def test_resnet_keeps_the_grid_of_its_third_stage() -> None:
    visual = tiny_resnet_clip().model.visual
    encoder = ClipResNet(visual)
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        fine = encoder(image)
        coarse = visual.forward_intermediates(
            (image - encoder.mean) / encoder.std, indices=[4], intermediates_only=True
        )["image_intermediates"][0]
    assert fine.shape == (2, encoder.channels, 4, 6)
    assert coarse.shape == (2, encoder.channels, 2, 3)
    # Of a picture of one colour, pooling changes nothing but near the border.
    flat = torch.full((1, 3, 256, 256), 0.3)
    with torch.no_grad():
        inner = encoder(flat)[0, :, 8, 8]
        pooled = visual.forward_intermediates(
            (flat - encoder.mean) / encoder.std, indices=[4], intermediates_only=True
        )["image_intermediates"][0][0, :, 4, 4]
    torch.testing.assert_close(inner, pooled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_only_what_is_trained_has_gradients(kind: str) -> None:
    counter = clip_ebc(tiny_clip() if kind == "vit" else tiny_resnet_clip(), BINS, num_prompts=2, window=None)
    blocks = counter.head(counter.encode(torch.rand(2, 3, 64, 96)))
    assert blocks.density.shape == (2, 1, 4, 6)
    blocks.density.sum().backward()
    learns = {name for name, each in counter.named_parameters() if each.grad is not None}
    assert learns == {name for name, each in counter.named_parameters() if each.requires_grad}
    assert "head.log_scale" in learns
    if kind == "vit":
        assert {name for name in learns if name.startswith("encode.")} == {"encode.prompts"}
    else:
        assert "encode.visual.layer4.0.downsample.0.weight" in learns
        assert not any("attnpool" in name for name in learns)
        widths = {each.out_channels for each in counter.head.decoder.modules() if isinstance(each, nn.Conv2d)}
        assert widths == {counter.encode.channels}


def test_statistics_and_words() -> None:
    counter = clip_ebc(tiny_clip(), BINS)
    torch.testing.assert_close(counter.encode.mean.flatten(), torch.tensor(IMAGENET_MEAN))
    own = clip_ebc(tiny_clip(), BINS, statistics="own", singular="apple", plural="apples")
    torch.testing.assert_close(own.encode.mean.flatten(), torch.tensor(tiny_clip().mean))
    assert own.name == "apple"
    assert not torch.allclose(own.head.text, counter.head.text)
    torch.testing.assert_close(own.head.text.norm(dim=1), torch.ones(len(BINS)))


def test_answers_for_users() -> None:
    counter = clip_ebc(tiny_clip(), BINS, num_prompts=2, window=64, stride=32)
    infer = CountInferencer(counter, ("person", "people"), about={"encoder": "tiny"})
    images = [torch.randint(256, hw, dtype=torch.uint8).numpy() for hw in ((70, 90, 3), (50, 64, 3))]
    first, second = infer.answers(images, "people", batch_size=2)
    assert first.image_hw == (70, 90)
    assert first.names == ("people",)
    (alone,) = infer.answers(images[1:], "Person")
    assert alone.counts["Person"].number == pytest.approx(second.counts["people"].number, rel=1e-5)
    assert infer.describe()["method"] == "clip-ebc"
    assert infer.describe()["window_hw"] == [64, 64]
    with pytest.raises(VocabularyError, match=r"trained for 'person' alone.*'people', got dog"):
        infer.answers(images, "dog")
    with pytest.raises(VocabularyError, match="person, dog"):
        infer.answers(images, "person, dog")
    with pytest.raises(ConfigError, match="counts and does nothing else"):
        infer.answers(images, "person", tasks="segment,count")
    with pytest.raises(ConfigError, match="at least 1"):
        infer.answers(images, "person", batch_size=0)
    with pytest.raises(ConfigError, match="class for every pixel"):
        infer(images, "person")
