"""Names to guides and SAMs: every release's names, files, caches, offline; errors that say what to do."""

from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import segment_anything
import torch
from encoders.encoder_contract import PATCH, close, picture, shake
from safetensors.torch import save_file
from timm.models import eva, vision_transformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ovseg.encoders import guide_loading, hub, weights
from ovseg.encoders.bundled_sam import build_sam
from ovseg.encoders.checkpoints import load_into, load_state_dict
from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.guide_loading import (
    build_trunk,
    load_guide,
    load_sam,
    locate,
    split_part_name,
    timm_names,
)
from ovseg.encoders.hub import available
from ovseg.encoders.positions import PositionRule
from ovseg.encoders.sam import SamEncoder
from ovseg.encoders.weights import WEIGHTS
from ovseg.errors import CheckpointError, ConfigError

State = dict[str, Tensor]
SIZE: dict[str, Any] = {"img_size": 32, "patch_size": PATCH, "embed_dim": 32, "depth": 4, "num_heads": 4}
ROTARY: dict[str, Any] = {
    "rope_type": "dinov3",
    "rope_temperature": 100,
    "rope_rotate_half": True,
    "use_rot_pos_emb": True,
    "use_abs_pos_emb": False,
    "use_fc_norm": False,
    "dynamic_img_size": True,
    "num_reg_tokens": 4,
    "init_values": 0.5,
}
SAM_CONFIG: dict[str, Any] = {
    "image_encoder": {
        "img_size": 64,
        "patch_size": 16,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "out_chans": 8,
        "use_rel_pos": True,
        "window_size": 3,
        "global_attn_indexes": [1],
    },
    "prompt_encoder": {"mask_in_chans": 4},
    "mask_decoder": {
        "num_multimask_outputs": 3,
        "iou_head_depth": 2,
        "iou_head_hidden_dim": 8,
        "transformer": {"depth": 1, "mlp_dim": 8, "num_heads": 2},
    },
}


def tiny(architecture: str, **options: Any) -> nn.Module:
    """What stands in for timm's models: the same classes and switches, small."""
    options = {name: value for name, value in options.items() if value is not None}
    if "dinov3" in architecture:
        return Eva(**SIZE, **ROTARY, **({"qkv_bias": False} | options))
    if "reg4" in architecture:
        return VisionTransformer(**SIZE, reg_tokens=4, no_embed_class=True, init_values=0.5, **options)
    return VisionTransformer(**SIZE, init_values=0.5 if "dinov2" in architecture else None, **options)


@pytest.fixture(autouse=True)
def _tiny_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide_loading.timm, "create_model", tiny)
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", lambda: build_sam(SAM_CONFIG).eval())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def trunk_of(name: str, **options: Any) -> Any:
    torch.manual_seed(5)
    return shake(tiny(WEIGHTS[name].architecture, num_classes=0, **options))


def full_checkpoint(state: State) -> dict[str, Any]:
    """DINO's training checkpoint."""
    heads = {"head.mlp.0.weight": torch.ones(2, 2)}
    student = {f"module.backbone.{k}": torch.zeros_like(v) for k, v in state.items()} | heads
    teacher = {f"backbone.{k}": v for k, v in state.items()} | heads
    args = argparse.Namespace(arch="vit_small", patch_size=8)
    return {"student": student, "teacher": teacher, "optimizer": {"state": {0: {}}}, "epoch": 3, "args": args}


def dinov2(state: State) -> State:
    return state | {"mask_token": torch.ones(1, 32)}


def chunked(state: State) -> State:
    """As trained on many devices: two blocks to a chunk, blocks numbered throughout."""
    return dinov2({re.sub(r"^blocks\.(\d+)", _chunk, name): value for name, value in state.items()})


def _chunk(match: re.Match[str]) -> str:
    return f"blocks.{int(match[1]) // 2}.{match[1]}"


def registers(state: State) -> State:
    """The class token has a position of its own in the release."""
    state = dinov2(state)
    position = torch.full((1, 1, 32), 0.25)
    state["register_tokens"] = state.pop("reg_token")
    state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    return state | {"cls_token": state["cls_token"] - position}


def dinov3(state: State) -> State:
    names: State = {}
    for name, value in state.items():
        if name.endswith("q_bias"):
            parts = [value, torch.full_like(value, 7.0), state[name.replace("q_bias", "v_bias")]]
            names[name.replace("q_bias", "qkv.bias")] = torch.cat(parts)
        elif not name.endswith("v_bias"):
            names[re.sub(r"gamma_(\d)$", r"ls\1.gamma", name)] = value
    names["storage_tokens"] = names.pop("reg_token")
    for block in range(4):
        names.setdefault(f"blocks.{block}.attn.qkv.bias", torch.tensor([0.0, 7.0, 0.0]).repeat_interleave(32))
        names[f"blocks.{block}.attn.qkv.bias_mask"] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(32)
    fixed = {"rope_embed.periods": torch.ones(2), "local_cls_norm.weight": torch.ones(32)}
    return dinov2(names) | fixed


LAYOUTS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "timm": ("dino_vits8", dict, {}),
    "DINO": ("dino_vits8", lambda state: state | {"head.weight": torch.ones(2, 2)}, {}),
    "DINO training": ("dino_vitb16", full_checkpoint, {}),
    "DINOv2": ("dinov2_vits14", dinov2, {}),
    "DINOv2 chunked": ("dinov2_vits14", chunked, {}),
    "DINOv2 training": ("dinov2_vits14", lambda s: {"teacher": full_checkpoint(chunked(s))["teacher"]}, {}),
    "DINOv2 registers": ("dinov2_vitb14_reg", registers, {}),
    "DINOv3": ("dinov3_vits16", dinov3, {}),
    "DINOv3 with bias": ("dinov3_vits16", dinov3, {"qkv_bias": True}),
    "timm DINOv3": ("dinov3_vits16", dict, {}),
    "timm DINOv3 with bias": ("dinov3_vits16", dict, {"qkv_bias": True}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_release_loads(layout: str, tmp_path: Path) -> None:
    name, release, options = LAYOUTS[layout]
    trunk, file = trunk_of(name, **options), tmp_path / "own.pth"
    torch.save(release(dict(trunk.state_dict())), file)
    guide, image = load_guide(f"{name}={file}"), picture(16, 40)
    rule = PositionRule(WEIGHTS[name].positions)
    close(guide(image).grid, DinoEncoder(trunk, positions=rule)(image).grid, rtol=0, atol=1e-6)
    assert guide.positions == rule
    assert guide.name == f"{name}:own.pth"
    assert guide.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert not any(module.training for module in guide.modules())
    assert not any(p.requires_grad or p.is_meta for p in guide.parameters())
    assert not any(buffer.is_meta for buffer in guide.buffers())


def test_names_are_those_that_timm_gives() -> None:
    for name, release, filtered in (
        ("dinov2_vits14", dinov2, vision_transformer.checkpoint_filter_fn),
        ("dinov2_vitb14_reg", registers, vision_transformer.checkpoint_filter_fn),
        ("dinov3_vits16", dinov3, eva.checkpoint_filter_fn),
    ):
        trunk = trunk_of(name, **({"qkv_bias": True} if "dinov3" in name else {}))
        state = release(dict(trunk.state_dict()))
        state.pop("local_cls_norm.weight", None)
        ours, theirs = timm_names(state), filtered(dict(state), trunk)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            close(ours[key], value)


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A Hugging Face cache with a DINO and a SAM."""
    save_file(dict(trunk_of("dino_vitb8").state_dict()), tmp_path / "dino")
    torch.save(build_sam(SAM_CONFIG).state_dict(), tmp_path / "sam")
    for name, file in (("dino_vitb8", tmp_path / "dino"), ("sam_vitb", tmp_path / "sam")):
        entry = WEIGHTS[name]
        repo = tmp_path / "cache" / ("models--" + entry.repo.replace("/", "--"))
        path = repo / "snapshots" / ("c" * 40) / entry.files[0].filename
        path.parent.mkdir(parents=True)
        file.rename(path)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("c" * 40)
    return tmp_path / "cache"


def test_from_the_cache_without_a_network(cached: Path) -> None:
    guide = load_guide("dino_vitb8", offline=True, cache_dir=cached)
    close(guide(picture(16, 40)).grid, DinoEncoder(trunk_of("dino_vitb8"))(picture(16, 40)).grid)
    assert guide.name == "dino_vitb8"
    states = {entry.name: state for entry, state in available(cached)}
    assert states["dino_vitb8"] == states["sam_vitb"] == "cached"
    assert states["dino_vits8"] == "download"
    assert states["found_vits8"] == states["dino_vits8_300ep"] == "by hand"
    assert states["bundled"] == "bundled"
    assert {entry.kind for entry, _ in available(cached, ("sam", "found"))} == {"sam", "found"}


def test_the_tables_hash_counts_in_folders_too(cached: Path) -> None:
    with pytest.raises(CheckpointError, match="ovseg's table of weights says ec2df6"):
        load_sam("sam_vitb", offline=True, cache_dir=cached)


def test_what_torch_hub_fetched_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(dict(trunk_of("dino_vits8").state_dict()), folder / "dino_deitsmall8_300ep_pretrain.pth")
    guide = load_guide("dino_vits8_300ep", offline=True, cache_dir=tmp_path)
    assert guide.weights_sha256
    (folder / "decoder_weights.pt").write_bytes(b"somebody else's")
    with pytest.raises(CheckpointError, match="no weights for saliency part 'found_vits8'"):
        locate("found_vits8", "found", offline=True, cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "dinov2_vitb14_reg",
            (
                "no weights for guide 'dinov2_vitb14_reg'",
                "model.safetensors or pytorch_model.bin of timm/vit_base_patch14_reg4_dinov2.lvd142m",
                "https://huggingface.co/timm/vit_base_patch14_reg4_dinov2.lvd142m/tree/main",
                "HF_HUB_OFFLINE",
                "--guide dinov2_vitb14_reg=FILE",
                "--guide bundled",
            ),
        ),
        (
            "sam_vith",
            (
                "no weights for SAM 'sam_vith'",
                "checkpoints/sam_vit_h_4b8939.pth of ybelkada/segment-anything",
                "--sam sam_vith=FILE",
                "--sam bundled",
            ),
        ),
        (
            "found_vits8",
            (
                "no weights for saliency part 'found_vits8'",
                "decoder_weights.pt of github.com",
                "it is on no hub",
                "https://github.com/valeoai/FOUND/raw/",
                "--saliency found_vits8=FILE",
            ),
        ),
        ("clip_dinoiser", ("CLIP-DINOiser convolutions", "--convolutions clip_dinoiser=FILE")),
    ],
)
def test_offline_and_not_there_is_one_clear_error(
    name: str, parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("tried to download"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError) as raised:
        locate(name, "dino", "sam", "found", "dinoiser", cache_dir=tmp_path)
    for part in (*parts, str(tmp_path)):
        assert part in str(raised.value), part


def test_part_names() -> None:
    assert split_part_name("dino_vitb8") == ("dino_vitb8", None)
    assert split_part_name("dino_vitb8=a=b.pth") == ("dino_vitb8", Path("a=b.pth"))
    assert split_part_name("sam_vitb=~/w.pth")[1] == Path.home() / "w.pth"
    for wrong in ("=w.pth", "dino_vitb8="):
        with pytest.raises(ConfigError, match="must be NAME or NAME=FILE"):
            split_part_name(wrong)


def test_a_file_as_an_argument_or_in_the_name(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(dict(trunk_of("dino_vitb8").state_dict()), file)
    one, other = load_guide("dino_vitb8", weights=file), load_guide(f"dino_vitb8={file}")
    assert torch.equal(one(picture(16, 40)).grid, other(picture(16, 40)).grid)
    entry, path = locate(f"dino_vitb8={file}", "dino")
    assert (entry.licence, entry.repo, path) == ("the file's own", "", file)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_guide("dino_vitb9"), "unknown guide 'dino_vitb9'. Did you mean 'dino_vitb[0-9]+'"),
        (lambda: load_guide("clip_vitb16_openai"), "goes with --encoder, here one of .* dino_vits16"),
        (lambda: load_guide("found_vits8=w.pt"), "'found_vits8' goes with --saliency"),
        (lambda: load_sam("dino_vitb8"), "goes with --guide, here one of .* bundled, sam_vitb"),
        (lambda: load_sam("sam_vitx"), "unknown part 'sam_vitx'. Did you mean"),
        (lambda: load_guide("dino_vitb8=a.pth", weights=Path("b.pth")), "give one of them"),
        (lambda: load_guide("bundled=a.pth"), "bundled networks have their own weights"),
        (lambda: load_sam("bundled", weights=Path("a.pth")), "bundled networks have their own weights"),
        (lambda: weights.find_entry("dino_vitb8"), "'dino_vitb8' knows no words.* --guide"),
    ],
)
def test_names_that_will_not_do(call: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


class _Runs:
    def __reduce__(self) -> tuple:
        return pytest.fail, ("unpickled",)


def _damaged(state: State) -> State:
    del state["blocks.1.norm1.weight"]
    return state | {"blocks.9.extra": torch.ones(1)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dino_vitb8", lambda state: state | {"code": _Runs()}, "holds more than tensors"),
        (
            "dino_vitb8",
            _damaged,
            r"does not fit vit_base_patch8_224\. It seems to hold a vision transformer without a text tower "
            r"\(width 32, patch 8, .*1 missing: blocks\.1\.norm1\.weight; 1 unexpected: blocks\.9\.extra",
        ),
        ("dinov2_vitb14_reg", dict, r"missing: reg_token"),
        (
            "dino_vitb8",
            lambda _: {"embeddings.cls_token": torch.ones(1, 1, 32)},
            "in the form of the transformers package .take the authors' own file",
        ),
        ("dino_vitb8", lambda _: build_sam(SAM_CONFIG).state_dict(), "seems to hold a SAM model"),
        ("sam_vitb", dict, "does not fit SAM vit_b.*without a text tower"),
        ("sam_vitb", lambda _: {"vision_encoder.pos_embed": torch.ones(1)}, "transformers package"),
    ],
)
def test_files_that_will_not_do(name: str, content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content(dict(trunk_of("dino_vitb8").state_dict())), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        load_guide(name, weights=tmp_path / "w.pth")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"no such file: absent\.pth"):
        load_guide("dino_vitb8=absent.pth")


def test_a_sam(tmp_path: Path) -> None:
    torch.manual_seed(1)
    sam = shake(build_sam(SAM_CONFIG))
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    for load in (load_sam, load_guide):
        loaded = load(f"sam_vitb={tmp_path / 'sam.pth'}")
        assert isinstance(loaded, SamEncoder)
        assert loaded.name == "sam_vitb:sam.pth"
        assert loaded.weights_sha256 == hashlib.sha256((tmp_path / "sam.pth").read_bytes()).hexdigest()
        for key, value in loaded.sam.state_dict().items():
            assert torch.equal(value, sam.state_dict()[key]), key
        assert torch.equal(loaded.sam.pixel_mean, sam.pixel_mean)
        image = picture(48, 64)
        close(loaded(image).grid, SamEncoder(sam).eval()(image).grid)


def test_found_and_dinoiser_files_keep_their_names(tmp_path: Path) -> None:
    """Their loaders, in other modules, find the official layouts as flat names."""
    inner = {"weight": torch.ones(1, 384, 1, 1), "bias": torch.ones(1)}
    torch.save({"decoder": inner}, tmp_path / "found.pt")
    entry, path = locate(f"found_vits8={tmp_path / 'found.pt'}", "found")
    assert load_state_dict(path).keys() == {"decoder.weight", "decoder.bias"}
    assert WEIGHTS[entry.trunk].kind == "dino"
    convolutions = {"obj_proj.bias": torch.ones(1), "bkg_decoder.bias": torch.ones(1)}
    torch.save({"epoch": 99, "model_state_dict": convolutions}, tmp_path / "last.pt")
    assert load_state_dict(tmp_path / "last.pt").keys() == convolutions.keys()


@pytest.mark.parametrize("name", ["dino_vits16", "dinov2_vitb14_reg", "dinov3_vits16"])
def test_real_architectures(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    entry = WEIGHTS[name]
    trunk = build_trunk(entry.architecture, depth=2)
    assert all(p.is_meta for p in trunk.parameters()) != name.startswith("dinov3")
    encoder = DinoEncoder(trunk)
    digits = re.findall(r"\d+", name.removeprefix(name.split("_")[0]))
    assert encoder.patch_hw == (int(digits[0]), int(digits[0]))
    assert encoder.tower.num_prefix == 1 + 4 * ("reg" in name or "dinov3" in name)
    load_into(trunk, trunk.state_dict(), source="itself", architecture=name)


def test_the_real_sam_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    sam = guide_loading._without_memory(segment_anything.sam_model_registry["vit_b"])
    assert all(p.is_meta for p in sam.parameters())
    assert not sam.pixel_mean.is_meta
    assert SamEncoder(sam).patch_hw == (16, 16)
