"""DenseCLIP under the Runner: segmentation and detection, with ResNets and ViTs, from data to answers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from support import random_image

from mm.conftest import REPO, TWO_STEPS, load_tiny_clip
from ovseg.encoders.clip_loading import LoadedClip
from ovseg.errors import CheckpointError, ConfigError
from ovseg.mm import load_config
from ovseg.mm.build import inferencer_from_config
from ovseg.mm.registry import MODELS
from ovseg.mm.train import prepare_training, run_training

NAMES = ["cat", "dog", "sky"]
FPN = {
    "neck": {"type": "mmseg.FPN", "out_channels": 8, "num_outs": 4},
    "decode_head": {
        "type": "mmseg.FPNHead",
        "in_index": [0, 1, 2, 3],
        "feature_strides": [4, 8, 16, 32],
        "channels": 8,
        "loss_decode": {"type": "mmseg.CrossEntropyLoss", "avg_non_ignore": True},
    },
}
UPER = {
    "decode_head": {
        "type": "mmseg.UPerHead",
        "in_index": [0, 1, 2, 3],
        "channels": 8,
        "pool_scales": (1, 2),
        "loss_decode": {"type": "mmseg.CrossEntropyLoss", "avg_non_ignore": True},
    },
    "auxiliary_head": {
        "type": "mmseg.FCNHead",
        "in_index": 2,
        "channels": 8,
        "num_convs": 1,
        "loss_decode": {"type": "mmseg.CrossEntropyLoss", "avg_non_ignore": True, "loss_weight": 0.4},
    },
}


def tiny(name: str, resnet: bool) -> LoadedClip:
    """In the place of `load_clip`."""
    clip = load_tiny_clip(name)
    torch.manual_seed(4)
    if resnet:
        clip.model.visual = open_clip.modified_resnet.ModifiedResNet(
            [1, 1, 1, 1], 16, 4, image_size=64, width=8
        )
    else:
        clip.model.visual = open_clip.transformer.VisionTransformer(
            image_size=64, patch_size=16, width=32, layers=6, heads=4, mlp_ratio=2.0, output_dim=16
        )
    return clip


@pytest.fixture(params=["resnet", "vit"])
def tower(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    load = partial(tiny, resnet=request.param == "resnet")
    monkeypatch.setattr("ovseg.mm.denseclip.load_clip", load)
    monkeypatch.setattr("ovseg.mm.denseclip_detector.load_clip", load)
    init_default_scope("ovseg")
    return request.param


def model(**changes: Any) -> Any:
    torch.manual_seed(1)
    options = {
        "type": "DenseClip",
        "classes": NAMES,
        "encoder": "tiny",
        "short_side": 64,
        "windows": {"crop": 64, "stride": 32},
        "matching": {"contexts": 4, "decoder": {"width": 16, "heads": 2, "layers": 1}},
    }
    return MODELS.build(options | FPN | changes)


def batch(*sizes: tuple[int, int]) -> tuple[list[torch.Tensor], list[SegDataSample]]:
    images, samples = [], []
    for number, hw in enumerate(sizes):
        images.append(torch.from_numpy(random_image(*hw, seed=number)).permute(2, 0, 1).flip(0))
        labels = torch.full((1, *hw), 255, dtype=torch.uint8)
        labels[:, 8:, : hw[1] // 2], labels[:, 8:, hw[1] // 2 :] = number, 2
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=labels)))
    return images, samples


@pytest.mark.parametrize("decoder", [FPN, {"neck": None} | UPER], ids=["fpn", "uper"])
def test_losses_reach_all_that_is_trained_and_nothing_else(tower: str, decoder: dict) -> None:
    built = model(**decoder).train()
    losses = built(*batch((64, 64), (48, 60)), mode="loss")
    wanted = {"loss_score_map", "decode.loss_ce"} | (
        {"auxiliary.loss_ce"} if "auxiliary_head" in decoder else set()
    )
    assert {name for name in losses if "loss" in name} == wanted
    sum(value for name, value in losses.items() if "loss" in name).backward()
    without = [name for name, each in built.named_parameters() if each.grad is None]
    assert not without
    text = built.net.text
    assert all(each.grad is None and not each.requires_grad for each in text.parameters())
    assert not any(
        "token_embedding" in name or ("transformer.resblocks.0.ln_1" in name and "visual" not in name)
        for name in built.state_dict()
    )


def test_padding_changes_no_loss(tower: str) -> None:
    """An image that is padded to its neighbour's size: padding has no label."""
    built = model().eval()
    images, samples = batch((64, 64))
    labels = samples[0].gt_sem_seg.data
    labels[:, 32:] = 255
    alone = built._score_loss(
        torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(0)), labels[0].long()[None]
    )
    assert alone.isfinite()
    from ovseg.mm.denseclip import padded_batch

    rgb, padded = padded_batch(
        [images[0], images[0][:, :40, :50]], [samples[0], _cut(samples[0], 40, 50)], 32
    )
    assert rgb.shape == (2, 3, 64, 64)
    assert (padded[1, 40:] == -1).all()
    assert (padded[1, :, 50:] == -1).all()
    torch.testing.assert_close(rgb[1, :, :40, :50], rgb[0, :, :40, :50])
    torch.testing.assert_close(rgb[0, 0], images[0][2].float() / 255)  # RGB of BGR


def _cut(sample: SegDataSample, height: int, width: int) -> SegDataSample:
    return SegDataSample(gt_sem_seg=PixelData(data=sample.gt_sem_seg.data[:, :height, :width]))


def test_slide_is_the_mean_of_windows(tower: str) -> None:
    """Against the definition: logits of each window at its own size, averaged where windows overlap."""
    built = model().eval()
    predictor = built.predictor()
    image = random_image(64, 96)
    question = predictor.question(NAMES)
    found = predictor.score([image], question)
    rgb = torch.from_numpy(image).permute(2, 0, 1).float()[None] / 255
    total, visits = torch.zeros(1, 3, 64, 96), torch.zeros(96)
    with torch.no_grad():
        for left in (0, 32):
            logits = built.decode(built.net(built.net.normalise(rgb[..., left : left + 64])).levels)
            total[..., left : left + 64] += torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear")
            visits[left : left + 64] += 1
    torch.testing.assert_close(found.resampling.apply(found.cosine), total / visits, atol=1e-4, rtol=1e-4)
    [result] = predictor([image], NAMES)
    assert (result.labels == (total / visits).argmax(dim=1)[0].numpy()).mean() > 0.999


def test_words(tower: str, caplog: pytest.LogCaptureFixture) -> None:
    """All classes, some of them in any order, or any others."""
    predictor = model(windows={}).eval().predictor()
    image = random_image(50, 70)
    whole = predictor.score([image], predictor.question(NAMES)).cosine
    some = predictor.score([image], predictor.question("sky, Cat")).cosine
    torch.testing.assert_close(some, whole[:, [2, 0]])
    assert not caplog.records
    other = predictor.score([image], predictor.question("zebra crossing, cat, sky"))
    assert "was not trained with 'zebra crossing'" in caplog.text
    assert other.cosine.abs().max() <= 1 + 1e-5
    assert other.temperature == predictor.net.matching.temperature
    [answer] = predictor.answers([image], "zebra crossing, cat, sky")
    assert answer.segmentation.labels.shape == (50, 70)
    assert answer.names == ("zebra crossing", "cat", "sky")
    with pytest.raises(ConfigError, match="segment"):
        predictor.answers([image], NAMES, tasks="count")


def test_batches_of_mixed_sizes(tower: str) -> None:
    predictor = model().eval().predictor()
    images = [random_image(40, 70), random_image(64, 64), random_image(40, 70, seed=3)]
    together = [each.labels for each in predictor(images, NAMES, batch_size=3)]
    for image, labels in zip(images, together, strict=True):
        [alone] = predictor([image], NAMES)
        assert (alone.labels == labels).mean() > 0.999


def test_what_is_wrong_is_told(tower: str) -> None:
    built = model()
    images, samples = batch((64, 64))
    with pytest.raises(ConfigError, match="LoadAnnotations"):
        built(images, [SegDataSample()], mode="loss")
    with pytest.raises(ConfigError, match="as bytes"):
        built([images[0].float()], samples, mode="loss")
    other = model(classes=["a", "b", "c", "d"])
    with pytest.raises(CheckpointError, match="does not fit"):
        other.load_trained({"meta": {"ovseg": built.describe()}, "state_dict": built.state_dict()}, "x.pth")


def scenes_config(work_dir: Path) -> Any:
    """The shipped config, a few steps long and small."""
    return load_config(
        REPO / "configs/denseclip/denseclip_bundled_scenes.py",
        TWO_STEPS
        | {
            "train_dataloader.dataset.pipeline.2.crop_size": (64, 64),
            "train_dataloader.dataset.size_hw": (64, 80),
            "val_dataloader.dataset.size_hw": (64, 80),
            "model.short_side": 64,
            "model.windows": {"crop": 64, "stride": 64},
            "model.neck.out_channels": 8,
            "model.decode_head.channels": 8,
            "default_hooks.checkpoint.interval": 2,
        },
    )


def test_from_scenes_to_answers(tower: str, tmp_path: Path) -> None:
    if tower == "resnet":
        pytest.skip("one tower is enough")
    trained = run_training(prepare_training(scenes_config(tmp_path), work_dir=tmp_path / "run"))
    assert trained.metrics["mIoU"] >= 0
    state = torch.load(trained.checkpoint, weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in state} == {"net", "neck", "decode_head"}
    ask = inferencer_from_config(scenes_config(tmp_path), checkpoint=trained.checkpoint, device="cpu")
    [result] = ask([random_image(40, 60)], "dog, grass")
    assert result.labels.shape == (40, 60)
    assert ask.describe()["parts"]["denseclip"]["name"] == trained.checkpoint.name
    vocabulary, bank = ask.bank("dog, grass")
    assert vocabulary.names == bank.names
