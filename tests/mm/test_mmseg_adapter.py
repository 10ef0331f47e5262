"""SAN and CAT-Seg of mmseg behind our vocabulary, on random weights: predictor, checkpoints, Runner."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mm.conftest import REPO
from mm.layouts import LAYOUTS
from ovseg.errors import CheckpointError, ConfigError
from ovseg.mm import catseg, load_config
from ovseg.mm.mmseg_adapter import MMSegModel, read_config, texts_of, without_downloads
from ovseg.mm.runner import prepare, run_test
from ovseg.text.vocabulary import Vocabulary

SAN = "mmseg::san/san-vit-b16_coco-stuff164k-640x640.py"
FAMILIES = sorted([*(REPO / "configs" / "san").glob("*.py"), *(REPO / "configs" / "cat-seg").glob("*.py")])
#: A checkout's projects/CAT-Seg, where there is one: it is no part of the package.
PROJECT = os.environ.get("OVSEG_CATSEG_PROJECT", "")
TINY_SAN: dict[str, Any] = {
    "image_encoder": {"embed_dims": 32, "num_heads": 2, "mlp_ratio": 1},
    "text_encoder": {"embed_dims": 16, "num_layers": 1, "num_heads": 2, "output_dims": 16},
    "decode_head": {
        "san_cfg": {
            "clip_channels": 32,
            "embed_dims": 24,
            "num_queries": 6,
            "cfg_encoder": {"num_heads": 2, "mlp_ratio": 1},
            "cfg_decoder": {"num_heads": 2, "embed_channels": 16, "mlp_channels": 16},
        },
        "maskgen_cfg": {
            "sos_token_num": 6,
            "num_layers": 1,
            "embed_dims": 32,
            "num_heads": 2,
            "out_dims": 16,
        },
    },
}
TINY_CAT_SEG: dict[str, Any] = {
    "backbone": {"feature_extractor": {"depth": 18, "base_channels": 16}},
    "neck": {"appearance_guidance_dim": 64, "text_guidance_dim": 16},
    "decode_head": {"decoder_guidance_dims": (32, 16)},
}
TINY_CLIP = (16, 384, 1, 64, 16, 77, 49408, 64, 1, 1)
NEEDS_PROJECT = pytest.mark.skipif(not PROJECT, reason="OVSEG_CATSEG_PROJECT names no projects/CAT-Seg")
WORDS = "cat, dog = puppy | hound, grass"


@pytest.fixture(scope="module")
def san() -> MMSegModel:
    torch.manual_seed(0)
    model = MMSegModel(segmentor=SAN, vocabulary=WORDS, probability="value", options=TINY_SAN).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)


def test_san_answers_any_words(san: MMSegModel) -> None:
    predictor = san.predictor()
    (answer,) = predictor.answers([image()], WORDS)
    found = answer.segmentation
    assert found is not None
    assert found.labels.shape == (40, 70)
    assert found.names == ("cat", "dog", "grass")
    assert 0 <= found.confidence.min() <= found.confidence.max() <= 1
    (other,) = predictor([image()], "grass, cat")
    assert other.names == ("grass", "cat")
    (alone,) = predictor([image()], "cat")
    assert (alone.labels == 0).all()
    (swapped,) = predictor([image()], "grass, dog = puppy | hound, cat")
    assert (np.array([2, 1, 0])[swapped.labels] == found.labels).mean() > 0.99
    assert "random" in predictor.notice
    assert predictor.describe()["method"] == SAN
    with pytest.raises(ConfigError, match="answers the task segment, not detect"):
        predictor.answers([image()], "cat", tasks=("detect",))


def test_synonyms_speak_for_their_class() -> None:
    words, classes = texts_of(Vocabulary.parse(WORDS))
    assert [words[k] for k in (classes == 1).nonzero().flatten().tolist()][-2:] == ["puppy", "hound"]
    assert words[0] == "cat"


def test_checkpoints_are_mmsegs(san: MMSegModel, tmp_path: Path) -> None:
    (before,) = san.predictor()([image()], WORDS)
    path = tmp_path / "san.pth"
    torch.save({"state_dict": san.segmentor.state_dict(), "meta": {}}, path)
    with torch.no_grad():
        san.segmentor.decode_head.side_adapter_network.cls_token.add_(1) if hasattr(
            san.segmentor.decode_head.side_adapter_network, "cls_token"
        ) else next(san.segmentor.decode_head.parameters()).add_(1)
    san.load_trained(path)
    (after,) = san.predictor()([image()], WORDS)
    assert np.array_equal(before.confidence, after.confidence)
    assert san.predictor().notice is None
    assert san.predictor().describe()["encoder"] == "san.pth"
    torch.save({"state_dict": {"other": torch.zeros(1)}}, path)
    with pytest.raises(CheckpointError, match="parameters are missing"):
        san.load_trained(path)
    with pytest.raises(ConfigError, match="mmsegmentation's own tools"):
        san(None, None, mode="loss")


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("san/san_vitb16_voc20.py", {"model.options": TINY_SAN}),
        pytest.param(
            "cat-seg/cat-seg_vitb_voc20.py",
            {"model.options": TINY_CAT_SEG, "model.clip_shape": TINY_CLIP, "model.project": PROJECT},
            marks=NEEDS_PROJECT,
        ),
    ],
    ids=["san", "cat-seg"],
)
def test_three_images_through_the_runner(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    changes = changes | {"test_dataloader.num_workers": 0, "test_dataloader.persistent_workers": False}
    config = load_config(REPO / "configs" / family, changes)
    root = config.test_dataloader.dataset.data_root
    config.test_dataloader.dataset.data_root = root.replace("data/", f"{tmp_path}/", 1)
    LAYOUTS["voc20"].write(tmp_path, 20)
    metrics = run_test(prepare(config, work_dir=tmp_path / "work"))
    assert 0 <= metrics["mIoU"] <= 100


@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.stem)
def test_families_name_a_config_and_a_vocabulary(path: Path) -> None:
    model = load_config(path).model
    assert len(Vocabulary.parse(model.vocabulary)) > 1
    if model.segmentor.startswith("mmseg::"):
        assert read_config(model.segmentor).model.type == "MultimodalEncoderDecoder"
    else:
        with pytest.raises(ConfigError, match="no config of mmseg"):
            read_config(model.segmentor, "nowhere")


def test_nothing_is_downloaded() -> None:
    cleaned = without_downloads({"pretrained": "x", "a": [{"init_cfg": {"type": "Pretrained"}, "b": 1}]})
    assert cleaned == {"a": [{"b": 1}]}


def test_a_project_that_asks_for_the_lost_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cat_seg", raising=False)
    monkeypatch.delitem(sys.modules, catseg.LOST, raising=False)
    with pytest.raises(ConfigError, match="no CAT-Seg in"):
        catseg.import_project(tmp_path)
    (tmp_path / "cat_seg").mkdir()
    (tmp_path / "cat_seg" / "inner.py").write_text("VALUE = 3\n")
    (tmp_path / "cat_seg" / "__init__.py").write_text(
        f"from {catseg.LOST} import LocalEntryNotFoundError as Lost\nfrom .inner import VALUE\n"
    )
    module = catseg.import_project(tmp_path)
    assert module.VALUE == 3
    assert issubclass(module.Lost, FileNotFoundError)
    for name in ("cat_seg", "cat_seg.inner", catseg.LOST):
        sys.modules.pop(name, None)


@NEEDS_PROJECT
def test_cat_seg_answers_any_words() -> None:
    name = "configs/cat_seg/catseg_vitb-r101_4xb2-warmcoslr2e-4-adamw-80k_coco-stuff164k-384x384.py"
    model = MMSegModel(segmentor=name, project=PROJECT, options=TINY_CAT_SEG, clip_shape=TINY_CLIP).eval()
    (found,) = model.predictor()([image()], WORDS)
    assert found.labels.shape == (40, 70)
    assert found.names == ("cat", "dog", "grass")
    (other,) = model.predictor()([image()], "grass, cat")
    assert other.names == ("grass", "cat")
