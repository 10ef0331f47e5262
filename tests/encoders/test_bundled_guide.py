"""The affinity ViT of the package: loads offline and strictly, tells things apart better than colour."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from encoders.encoder_contract import close, picture
from safetensors.torch import load_file, save_file
from torch import Tensor

from ovseg.encoders.bundled_guide import build_guide_trunk, load_bundled_guide
from ovseg.encoders.dino import DinoEncoder
from ovseg.errors import CheckpointError
from ovseg.training.affinity_evaluate import evaluate_guide

BUNDLED = Path(str(files("ovseg") / "bundled"))


@pytest.fixture(scope="module")
def guide() -> DinoEncoder:
    return load_bundled_guide()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("affinity.json", "affinity.safetensors"):
        shutil.copy(BUNDLED / name, tmp_path)
    return tmp_path


def test_it_is_a_plain_small_frozen_vit(guide: DinoEncoder) -> None:
    assert guide.patch_hw == (8, 8)
    assert guide.name == "bundled"
    assert len(guide.weights_sha256) == 64
    assert not guide.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in guide.parameters())
    assert (BUNDLED / "affinity.safetensors").stat().st_size < 3.9e6
    features = guide(picture(40, 72, batch=2))
    assert features.grid.shape == (2, 192, 5, 9)
    assert torch.isfinite(features.grid).all()


def test_it_is_called_what_it_is() -> None:
    assert "not DINO" in json.loads((BUNDLED / "affinity.json").read_text())["model"]


def test_timm_reads_the_file_strictly_and_gives_the_same(guide: DinoEncoder) -> None:
    described = json.loads((BUNDLED / "affinity.json").read_text())
    own = build_guide_trunk(described["arguments"]).to_empty(device="cpu").eval()
    own.load_state_dict({k: v.float() for k, v in load_file(BUNDLED / "affinity.safetensors").items()})
    image = picture(128, 128)
    tokens = own.forward_features((image - guide.mean) / guide.std)[:, 1:]
    close(guide(image).grid, tokens.mT.unflatten(-1, (16, 16)), rtol=1e-4, atol=1e-4)


def test_it_tells_things_apart_better_than_colour(guide: DinoEncoder) -> None:
    def read(image: Tensor) -> dict[str, Tensor]:
        kinds = ("tokens", "k", "v", "qk")
        return {kind: guide.with_kind(kind)(image).grid.flatten(2).mT for kind in kinds}

    figures = evaluate_guide(read, length=8, size_hw=(160, 224), seed=7)
    for kind in ("tokens", "k", "v", "qk"):
        assert figures[f"{kind}_auc"] > figures["rgb_auc"] + 0.03, kind
        assert figures[f"{kind}_ap"] > figures["rgb_ap"] + 0.03, kind


def test_a_grey_image_gives_finite_features(guide: DinoEncoder) -> None:
    assert torch.isfinite(guide(torch.full((1, 3, 64, 96), 0.5)).grid).all()


def test_missing_and_foreign_files_are_named(folder: Path) -> None:
    state = load_file(folder / "affinity.safetensors")
    save_file({k: v for k, v in state.items() if k != "norm.weight"}, folder / "affinity.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: norm\.weight"):
        load_bundled_guide(folder)
    (folder / "affinity.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no such file: .*affinity\.safetensors"):
        load_bundled_guide(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("arguments", {"widht": 3}),
        ("arguments", None),
        ("positions", 3),
        ("positions", "sise"),
        ("mean", "x"),
    ],
)
def test_a_config_that_is_none_is_named(folder: Path, key: str, value: object) -> None:
    described = json.loads((folder / "affinity.json").read_text())
    (folder / "affinity.json").write_text(json.dumps(described | {key: value}))
    with pytest.raises(CheckpointError, match=r"affinity\.json describes no ViT"):
        load_bundled_guide(folder)
    (folder / "affinity.json").unlink()
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        load_bundled_guide(folder)
