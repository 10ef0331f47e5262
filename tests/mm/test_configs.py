"""Every config builds, says nothing twice, and is all there."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from mmengine.config import Config

from mm.conftest import CONFIGS, REPO
from ovseg.methods import CONTROLS, METHODS, options_of
from ovseg.mm import load_config
from ovseg.mm.registry import MODELS

DATASETS = (
    "voc21",
    "voc20",
    "context60",
    "context59",
    "coco_object",
    "coco_stuff164k",
    "cityscapes",
    "ade20k",
)


def dataset_of(path: Path) -> str:
    return path.stem.split("_", 2)[2]


def test_every_method_has_every_dataset() -> None:
    found = {(path.parent.name, dataset_of(path)) for path in CONFIGS}
    published = set(METHODS) - set(CONTROLS)
    assert found == set(product(published, (*DATASETS, "scenes"))) | set(product(CONTROLS, ["scenes"]))
    assert all((REPO / "configs" / m / f"{m}_bundled_scenes.py").is_file() for m in METHODS)


@pytest.mark.usefixtures("tiny_clip")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_builds(path: Path) -> None:
    config = load_config(path)
    assert config.default_scope == "ovseg"
    assert path.stem.startswith(f"{config.model.method.type}_")
    model = MODELS.build(config.model)
    assert model.inferencer.method == path.parent.name
    assert len(path.read_text().splitlines()) <= 10


def test_classes_fit_the_dataset() -> None:
    from ovseg.mm.build import vocabulary_of
    from ovseg.mm.registry import DATASETS as BUILDERS

    for path in CONFIGS:
        config = load_config(path)
        if dataset_of(path) == "scenes":
            from ovseg.scenes import SceneSet

            classes = SceneSet("test").classes
        else:
            classes = BUILDERS.get(config.test_dataloader.dataset.type).METAINFO["classes"]
        assert [each.strip() for each in classes] == list(vocabulary_of(config).names), path.stem


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_child_repeats_nothing(path: Path) -> None:
    own, inherited = own_and_inherited(path)
    assert repeated(own, inherited) == []
    # nor what the method does anyway
    defaults = options_of(path.parent.name)
    for name, value in own["model"].get("method", {}).items():
        assert defaults[name] != value, f"{name}={value} is the method's default"


def own_and_inherited(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    source = path.read_text()
    own: dict[str, Any] = {}
    exec(compile(source, str(path), "exec"), own)
    bases = own.pop("_base_")
    own.pop("__builtins__")
    inherited: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        inherited |= Config.fromfile(path.parent / base).to_dict()
    return own, inherited


def repeated(own: dict[str, Any], inherited: dict[str, Any], where: str = "") -> list[str]:
    found = []
    for key in own.keys() & inherited.keys():
        if isinstance(own[key], dict) and isinstance(inherited[key], dict):
            found += repeated(own[key], inherited[key], f"{where}{key}.")
        elif own[key] == inherited[key]:
            found.append(f"{where}{key}")
    return found


def test_repeated_finds_a_repetition() -> None:
    base = {"model": {"method": {"type": "sclip", "crop": 224}}, "x": 1}
    assert repeated({"model": {"method": {"crop": 224}}}, base) == ["model.method.crop"]
    assert repeated({"model": {"method": {"crop": 448}}}, base) == []


#: method, dataset -> short side, crop, stride, temperature, threshold, area threshold
PUBLISHED = {
    ("clip", "voc21"): (336, 224, 112, 65, 0.1, 0.1),
    ("sclip", "voc21"): (336, 224, 112, 65, 0.1, 0.1),
    ("sclip", "context60"): (336, 224, 112, 50, 0.1, 0),
    ("sclip", "coco_object"): (336, 224, 112, 50, 0.1, 0),
    ("sclip", "voc20"): (336, 224, 112, 40, 0, 0),
    ("sclip", "cityscapes"): (560, 224, 112, 40, 0, 0),
    ("sclip", "context59"): (336, 224, 112, 40, 0, 0),
    ("sclip", "ade20k"): (336, 224, 112, 40, 0, 0),
    ("sclip", "coco_stuff164k"): (448, 224, 112, 40, 0, 0),
    ("clearclip", "voc21"): (448, 448, 224, 50, 0.5, 0),
    ("clearclip", "context60"): (448, 448, 224, 50, 0.15, 0),
    ("clearclip", "coco_object"): (448, 448, 224, 50, 0.4, 0),
    ("clearclip", "cityscapes"): (448, 224, 224, 50, 0, 0),
    ("clearclip", "ade20k"): (448, 448, 224, 50, 0, 0),
    ("naclip", "voc21"): (336, None, None, 40, 0.1, 0),
    ("naclip", "voc20"): (336, None, None, 40, 0, 0),
    ("naclip", "context60"): (336, 224, 112, 40, 0.1, 0),
    ("naclip", "coco_object"): (336, 224, 112, 40, 0.1, 0),
    ("naclip", "cityscapes"): (560, 224, 112, 40, 0, 0),
    ("naclip", "coco_stuff164k"): (336, 224, 112, 40, 0, 0),
    ("maskclip", "voc21"): (448, 448, 224, 100, 0, 0),
    ("maskclip", "cityscapes"): (448, 448, 224, 100, 0, 0),
    ("maskclip", "coco_stuff164k"): (448, 448, 224, 100, 0, 0),
    ("proxyclip", "voc21"): (336, 336, 112, 40, 0.2, 0),
    ("proxyclip", "context60"): (336, 336, 112, 40, 0.15, 0),
    ("proxyclip", "coco_object"): (336, 336, 112, 40, 0.25, 0),
    ("proxyclip", "cityscapes"): (448, 224, 112, 40, 0, 0),
    ("proxyclip", "ade20k"): (448, 336, 112, 40, 0, 0),
    ("corrclip", "voc21"): (336, 336, 112, 40, 0.2, 0),
    ("corrclip", "cityscapes"): (448, 224, 112, 40, 0, 0),
    ("sc-clip", "voc21"): (336, 224, 112, 50, 0.15, 0.1),
    ("sc-clip", "context60"): (336, 224, 112, 40, 0.15, 0),
    ("sc-clip", "coco_object"): (336, 224, 112, 55, 0.35, 0),
    ("sc-clip", "cityscapes"): (560, 224, 112, 40, 0, 0),
    ("clip-dinoiser", "voc21"): (448, 448, 224, 100, 0, 0),
    ("clip-dinoiser", "ade20k"): (448, 448, 224, 100, 0, 0),
    ("trident", "voc21"): (448, 336, 224, 40, 0.2, 0),
    ("trident", "context60"): (576, 336, 224, 40, 0.15, 0),
    ("trident", "coco_object"): (448, 336, 224, 40, 0.25, 0),
    ("trident", "voc20"): (336, 336, 112, 40, 0, 0),
    ("trident", "cityscapes"): (688, 336, 224, 40, 0, 0),
    ("trident", "ade20k"): (576, 336, 224, 40, 0, 0),
    ("trident", "coco_stuff164k"): (448, 336, 224, 40, 0, 0),
}


@pytest.mark.usefixtures("tiny_clip")
@pytest.mark.parametrize(("method", "dataset"), PUBLISHED)
def test_published_settings(method: str, dataset: str) -> None:
    (path,) = (each for each in CONFIGS if each.parent.name == method and dataset_of(each) == dataset)
    config = load_config(path)
    inferencer = MODELS.build(config.model).inferencer
    scorer, head = inferencer.scorer, inferencer.head
    windows = scorer.windows
    stride = None if windows.crop is None else windows.stride
    found = (scorer.short_side, windows.crop, stride, scorer.temperature, head.threshold, head.area_threshold)
    assert found == PUBLISHED[method, dataset]
    assert config.model.templates == "imagenet80"
    laion = method in ("maskclip", "clip-dinoiser")
    weights = "laion2b" if laion else "metaclip" if method == "corrclip" else "openai"
    assert config.model.encoder == f"clip_vitb16_{weights}"


def test_metafiles() -> None:
    index = yaml.safe_load((REPO / "model-index.yml").read_text())
    assert index["Import"] == sorted(str(p.relative_to(REPO)) for p in REPO.glob("configs/*/metafile.yml"))
    assert {Path(each).parts[1] for each in index["Import"]} >= set(METHODS) - set(CONTROLS)
    for each in index["Import"]:
        meta = yaml.safe_load((REPO / each).read_text())
        configs = {model["Config"] for model in meta["Models"]}
        folder = Path(each).parent
        assert configs <= {str(p.relative_to(REPO)) for p in (REPO / folder).glob("*.py")}
        assert configs >= {str(p.relative_to(REPO)) for p in CONFIGS if p.parent == REPO / folder}
        for model in meta["Models"]:
            for result in model.get("Results", []):
                assert "paper" in result["Source"].lower(), "a figure that is not ours says so"
