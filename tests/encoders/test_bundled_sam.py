"""The bundled SAM: loads strictly and offline, and its masks are better than the box they are asked with."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from segment_anything import SamPredictor
from segment_anything.modeling import Sam

from ovseg.encoders.bundled_sam import build_sam, load_bundled_sam
from ovseg.errors import CheckpointError
from ovseg.scenes import SceneSet
from ovseg.training.sam_evaluate import evaluate

BUNDLED = Path(str(files("ovseg") / "bundled"))


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_bundled_sam()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("sam.json", "sam.safetensors"):
        shutil.copy(BUNDLED / name, tmp_path / name)
    return tmp_path


def test_it_is_small_frozen_and_ready(sam: Sam) -> None:
    assert (BUNDLED / "sam.safetensors").stat().st_size < 2.9e6
    assert not sam.training
    assert all(not p.requires_grad and p.dtype == torch.float32 for p in sam.parameters())
    stored = load_file(BUNDLED / "sam.safetensors")
    sam.load_state_dict({name: value.float() for name, value in stored.items()}, strict=True)
    assert sam.image_encoder.blocks[-1].window_size == 0  # Trident reads the last block's global attention
    assert sam.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])


def test_boxes_and_points_find_objects_and_grounds(sam: Sam) -> None:
    figures = evaluate(sam, "val", scenes=6, seed=5)
    assert figures["box"] > figures["box_itself"] + 0.1
    assert figures["box"] > 0.7
    assert figures["all"] > 0.7
    assert figures["point"] > 0.6
    assert figures["ground"] > 0.6
    assert figures["iou_error"] < 0.15


def test_the_predictor_of_the_library_takes_it_and_ranks_its_masks(sam: Sam) -> None:
    scenes = SceneSet("val", 6, length=3, size_hw=(150, 300))
    predictor, errors = SamPredictor(sam), []
    for scene in scenes:
        predictor.set_image(scene.image)
        for number, box in enumerate(scene.boxes_xyxy, 1):
            masks, rated, _ = predictor.predict(box=box, multimask_output=True)
            assert masks.shape == (3, 150, 300)
            truth = scene.instances == number
            iou = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
            errors.append(np.abs(iou - rated).mean())
    assert np.mean(errors) < 0.2


def test_a_flat_grey_image_gives_finite_masks(sam: Sam) -> None:
    predictor = SamPredictor(sam)
    predictor.set_image(np.full((80, 120, 3), 127, np.uint8))
    _, rated, logits = predictor.predict(np.array([[60.0, 40.0]]), np.array([1]))
    assert np.isfinite(rated).all()
    assert np.isfinite(logits).all()


def test_missing_and_unfit_files_are_named(folder: Path) -> None:
    config = json.loads((folder / "sam.json").read_text())
    config["image_encoder"]["embed_dim"] = 64
    (folder / "sam.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"does not fit the bundled SAM.*another shape"):
        load_bundled_sam(folder)
    config["image_encoder"]["colour"] = 1
    (folder / "sam.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"sam\.json describes no SAM: .*colour"):
        load_bundled_sam(folder)
    (folder / "sam.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no image_encoder, prompt_encoder, mask_decoder"):
        load_bundled_sam(folder)
    (folder / "sam.json").unlink()
    with pytest.raises(CheckpointError, match=r"sam\.json cannot be read"):
        load_bundled_sam(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    state = load_file(folder / "sam.safetensors")
    del state["mask_decoder.iou_token.weight"]
    save_file(state, folder / "sam.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: mask_decoder\.iou_token\.weight"):
        load_bundled_sam(folder)


def test_a_damaged_file_is_named(folder: Path) -> None:
    (folder / "sam.safetensors").write_bytes((folder / "sam.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged safetensors file"):
        load_bundled_sam(folder)
    (folder / "sam.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        load_bundled_sam(folder)


def test_parts_share_what_is_said_once() -> None:
    config = json.loads((BUNDLED / "sam.json").read_text())
    sam = build_sam(config)
    assert sam.prompt_encoder.image_embedding_size == (28, 28)
    assert sam.prompt_encoder.input_image_size == (224, 224)
    assert sam.mask_decoder.transformer_dim == sam.prompt_encoder.embed_dim == 64
