"""Token merging as an option: it reaches every method that can, and shows in what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.models.eva
import torch
from support import load_tool, random_image, tiny_part

from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.token_merging import TokenMerging
from ovseg.errors import ConfigError
from ovseg.inferencer import Inferencer
from ovseg.methods import METHODS, UNMERGED
from ovseg.parts import LOADERS
from ovseg.predictors import build_predictor
from ovseg.region_route import RegionRoute, SamProposals
from ovseg.regions import SAM_OPTIONS

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = dict(encoder="tiny", device="cpu", short_side=64, crop=48, stride=16)
IMAGE = random_image(70, 109)

pytestmark = pytest.mark.usefixtures("tiny_weights")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_it_reaches_every_method_that_can(method: str) -> None:
    if method in UNMERGED:
        with pytest.raises(ConfigError, match=f"'{method}' steps through"):
            Inferencer(method, **SMALL, merging=0.7)
        return
    plain, merged = Inferencer(method, **SMALL), Inferencer(method, **SMALL, merging=0.7)
    before, after = plain.encode([IMAGE]).grid, merged.encode([IMAGE]).grid
    assert before.shape == after.shape
    assert not torch.allclose(before, after, atol=1e-3)
    nothing = Inferencer(method, **SMALL, merging=1.0)
    assert torch.allclose(before, nothing.encode([IMAGE]).grid, atol=1e-5)


def test_the_guide_merges_and_the_one_that_was_given_stays_as_it_is() -> None:
    guide = tiny_part("guide")
    scorer = Inferencer("proxyclip", **SMALL, guide=guide, merging=0.7).scorer
    assert scorer.encoder.merging == scorer.guide.merging == TokenMerging(0.7)
    assert guide.merging is None
    assert scorer.guide.trunk is guide.trunk


def test_a_manifest_and_the_feature_cache_know_it(tmp_path: Path) -> None:
    plain = Inferencer("naclip", **SMALL, feature_cache=tmp_path)
    assert "merging" not in plain.describe(), "what was cached before there was merging stays good"
    list(plain([IMAGE], "cat, dog"))
    merged = Inferencer("naclip", **SMALL, feature_cache=tmp_path, merging=TokenMerging(0.7, rule="tome"))
    assert merged.describe()["merging"] == {
        "keep": 0.7, "margin": 0.9, "alpha": 1.0, "rule": "tome", "first": 0, "proportional": False,
    }  # fmt: skip
    list(merged([IMAGE], "cat, dog"))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    again = Inferencer("naclip", **SMALL, feature_cache=tmp_path, merging=0.8)
    assert len({each.feature_cache.fingerprint for each in (plain, merged, again)}) == 3


def test_dinov3_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = timm.models.eva.Eva(
        img_size=64, patch_size=16, embed_dim=64, depth=2, num_heads=2, num_classes=0, use_rot_pos_emb=True,
        use_abs_pos_emb=False, rope_type="dinov3", dynamic_img_size=True, qkv_fused=True,
    )  # fmt: skip
    guide = DinoEncoder(trunk, name="dinov3_tiny")
    Inferencer("proxyclip", **SMALL, guide=guide)
    with pytest.raises(
        ConfigError, match=r"guide 'dinov3_tiny' cannot merge tokens: DINOv3 .* leave merging out"
    ):
        Inferencer("proxyclip", **SMALL, guide=guide, merging=0.9)


@pytest.mark.parametrize("keep", [0.2, 1.5])
def test_shares_that_cannot_be(keep: float) -> None:
    with pytest.raises(ConfigError, match=r"keep must be 0\.5 to 1"):
        Inferencer("naclip", **SMALL, merging=keep)


def test_anomaly_methods_refuse() -> None:
    with pytest.raises(ConfigError, match="'winclip' merges no tokens"):
        build_predictor("winclip", ("anomaly",), encoder="bundled", device="cpu", merging=0.9)


def test_the_command_line(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = load_tool(ROOT / "tools" / "infer.py").main
    common = [
        str(photos),
        "-c",
        "cat, grass",
        "--method",
        "naclip",
        "--encoder",
        "bundled",
        "--device",
        "cpu",
    ]
    common += ["--formats", "labels", "-q", "--opts", "short_side=64", "crop=48", "stride=16"]
    assert main([*common, "-o", str(tmp_path / "out"), "--token-merging", "0.7"]) == 0
    assert '"keep": 0.7' in (tmp_path / "out" / "run.json").read_text()
    assert main([*common, "-o", str(tmp_path / "out")]) == 2, "a run with other settings"
    assert "merging" in capsys.readouterr().err
    assert main([*common, "-o", str(tmp_path / "other"), "--token-merging", "0.1"]) == 2
    assert "keep must be" in capsys.readouterr().err


class TestProposals:
    def test_the_bundled_sam_filters_little_by_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert SamProposals("sam_vitb").options == {}
        monkeypatch.setitem(LOADERS, "sam", lambda name: _named(tiny_part("sam"), name))
        assert SamProposals("bundled").options == SAM_OPTIONS
        assert SamProposals("bundled", points_per_side=4).options == {**SAM_OPTIONS, "points_per_side": 4}

    def test_a_predictor_that_has_a_route_gets_the_proposals(self) -> None:
        def looks(image: np.ndarray, regions: Any) -> torch.Tensor:
            return torch.ones(len(regions), 32)

        def trained(method: str, **options: Any) -> RegionRoute:
            return RegionRoute(Inferencer("naclip", **SMALL), lambda image, path: None, crops=looks)

        def given(image: np.ndarray, path: str | None) -> None:
            return None

        found = build_predictor("trained.py", ("detect",), proposals=given, from_config=trained)
        assert isinstance(found.inferencer, Inferencer), "no route within a route"
        assert found.proposals is given
        assert found.crops is looks


def _named(module: torch.nn.Module, name: str) -> torch.nn.Module:
    module.name = name
    return module
