"""DenseCLIP's configs build, their classes are the data sets', and what was published is in them."""

from __future__ import annotations

import pytest
import yaml
from mmengine.registry import init_default_scope

from mm.conftest import REPO
from mm.test_denseclip import tiny
from ovseg.mm import load_config
from ovseg.mm.build import build_vocabulary
from ovseg.mm.registry import MODELS

FOLDER = REPO / "configs" / "denseclip"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_builds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resnet = "_rn" in name
    for module in ("denseclip", "denseclip_detector"):
        monkeypatch.setattr(f"ovseg.mm.{module}.load_clip", lambda encoder: tiny(encoder, resnet=resnet))
    init_default_scope("ovseg")
    config = load_config(FOLDER / f"{name}.py")
    model = MODELS.build(config.model)
    assert model.net.name.endswith(config.model.encoder)
    assert len(model.net.names) == {"ade20k": 150, "coco": 80, "scenes": 56}[name.rpartition("_")[2]]
    crop = config.model.get("windows", {}).get("crop", 32)
    assert crop % model.net.backbone.multiple == 0
    if "coco" in name:
        assert model.detector.neck.in_channels == model.net.channels
        assert model.net.matching.appended == "logits"


def test_classes_are_the_data_sets() -> None:
    import mmseg.datasets

    assert build_vocabulary("ade150").names == tuple(
        each.strip() for each in mmseg.datasets.ADE20KDataset.METAINFO["classes"]
    )
    for name in NAMES:
        config = load_config(FOLDER / f"{name}.py")
        if "coco" in name:
            assert config.train_dataloader.dataset.vocabulary == config.model.classes


def test_published_schedules() -> None:
    """Of the authors' configs at 5eda47f0."""
    ade = load_config(FOLDER / "denseclip_rn50_ade20k.py")
    assert (ade.train_cfg.max_iters, ade.train_dataloader.batch_size) == (80000, 4)
    assert ade.model.windows.to_dict() == {"crop": 512, "stride": 341, "max_batch": 8}
    vit = load_config(FOLDER / "denseclip_vitb16_ade20k.py")
    assert (vit.model.short_side, vit.model.windows.crop, vit.model.windows.stride) == (640, 640, 426)
    assert vit.model.pyramid.drop_path_rate == 0.1
    crops = [each for each in vit.train_dataloader.dataset.pipeline if "crop_size" in each]
    assert [tuple(each["crop_size"]) for each in crops] == [(640, 640)]
    retina = load_config(FOLDER / "denseclip_rn50-retinanet_coco.py")
    mask = load_config(FOLDER / "denseclip_rn101-maskrcnn_coco.py")
    assert [each.optim_wrapper.optimizer.lr for each in (ade, retina, mask)] == [1e-4, 1e-4, 2e-4]
    assert retina.optim_wrapper.clip_grad.max_norm == 0.1
    assert retina.train_cfg.max_epochs == mask.train_cfg.max_epochs == 12
    assert retina.val_evaluator.metric == "bbox"
    assert mask.val_evaluator.metric == ["bbox", "segm"]


def test_metafile() -> None:
    models = yaml.safe_load((FOLDER / "metafile.yml").read_text())["Models"]
    assert sorted(each["Name"] for each in models) == NAMES
    for each in models:
        assert (REPO / each["Config"]).is_file()
        for result in each.get("Results", []):
            assert result["Source"] == "the paper's authors'; not measured by ovseg"
