"""Names to models: file, cache, download, package; offline; errors that say what to do."""

from __future__ import annotations

import gzip
import hashlib
import json
import types
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from encoders.encoder_contract import picture
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import nn

from ovseg.encoders import clip_loading, hub, weights
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.clip_loading import build_model, default_encoder, load_bundled, load_clip
from ovseg.encoders.hub import available
from ovseg.encoders.weights import SAFETENSORS, WEIGHTS, WeightsFile
from ovseg.errors import CheckpointError, ConfigError, MissingDependencyError

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
COMMIT = "c" * 40


@pytest.fixture(autouse=True)
def _tiny_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def model() -> open_clip.CLIP:
    torch.manual_seed(3)
    return open_clip.CLIP(**TINY, quick_gelu=True).eval()


@pytest.fixture
def file(model: open_clip.CLIP, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture
def cache(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache that holds the default encoder, which is tiny for the time of a test."""
    entry = replace(WEIGHTS["clip_vitb16_openai"], architecture="tiny")
    monkeypatch.setitem(weights.WEIGHTS, entry.name, entry)
    repo = tmp_path / "cache" / ("models--" + entry.repo.replace("/", "--"))
    blob = repo / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
    link = repo / "snapshots" / COMMIT / SAFETENSORS.filename
    for folder in (blob.parent, link.parent, repo / "refs"):
        folder.mkdir(parents=True)
    blob.write_bytes(file.read_bytes())
    link.symlink_to(Path("../../blobs") / blob.name)
    (repo / "refs" / "main").write_text(COMMIT)
    return tmp_path / "cache"


def blob_of(cache: Path) -> Path:
    return next(cache.glob("*/blobs/*"))


def same_outputs(ours: nn.Module, theirs: nn.Module) -> None:
    image, text = picture(32, 32), open_clip.get_tokenizer("tiny")(["a cat", "two dogs on a sofa"])
    with torch.no_grad():
        assert torch.equal(ours.encode_image(image), theirs.encode_image(image))
        assert torch.equal(ours.encode_text(text), theirs.encode_text(text))


def test_from_the_cache_without_a_network(cache: Path, model: open_clip.CLIP) -> None:
    loaded = load_clip(offline=True, cache_dir=cache)
    same_outputs(loaded.model, model)
    assert loaded.name == "clip_vitb16_openai"
    assert loaded.licence == "MIT"
    assert loaded.context_length == 12
    assert loaded.tokenizer(["a cat"]).shape == (1, 12)
    assert loaded.weights_sha256 == blob_of(cache).name
    assert loaded.notice is None
    assert loaded.mean == weights.CLIP_MEAN
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in loaded.model.parameters())
    assert ClipEncoder(loaded.model.visual)(picture(16, 40)).grid.shape == (1, 16, 2, 5)


def test_default_encoder_and_available(cache: Path, tmp_path: Path) -> None:
    states = {entry.name: state for entry, state in available(cache)}
    assert states["clip_vitb16_openai"] == "cached"
    assert states["clip_vitb16_laion2b"] == "download"
    assert states["bundled"] == "bundled"
    assert default_encoder(tmp_path / "nowhere") == "clip_vitb16_openai"
    here = next(cache.glob("models--*"))
    here.rename(cache / "models--laion--CLIP-ViT-L-14-DataComp.XL-s13B-b90K")
    assert default_encoder(cache) == "clip_vitl14_datacomp"


def test_a_pinned_revision_is_found(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    next(cache.glob("*/refs/main")).unlink()
    entry = replace(WEIGHTS["clip_vitb16_openai"])
    assert hub.find_cached(entry, cache) is None
    assert hub.find_cached(replace(entry, revision=COMMIT), cache) is not None


def test_a_damaged_download_is_found_out(cache: Path) -> None:
    blob = blob_of(cache)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"has sha256 [0-9a-f]{{64}}, but .* says {blob.name}"):
        load_clip(offline=True, cache_dir=cache)


def test_the_hash_of_the_table_counts(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(WEIGHTS["clip_vitb16_openai"], files=(WeightsFile(SAFETENSORS.filename, "0" * 64),))
    monkeypatch.setitem(weights.WEIGHTS, entry.name, entry)
    with pytest.raises(CheckpointError, match=f"ovseg's table of weights says {'0' * 64}"):
        load_clip(offline=True, cache_dir=cache)


@pytest.mark.parametrize("how", ["environment", "argument"])
def test_offline_and_not_there_is_one_clear_error(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("tried to download"))
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError) as raised:
        load_clip("clip_vitb16_laion2b", cache_dir=tmp_path, offline=True if how == "argument" else None)
    message = str(raised.value)
    for part in (
        "clip_vitb16_laion2b",
        "open_clip_model.safetensors",
        "https://huggingface.co/laion/CLIP-ViT-B-16-laion2B-s34B-b88K/tree/7288da5a0d6f",
        str(tmp_path),
        "HF_HUB_OFFLINE",
        "--weights FILE",
        "--encoder bundled",
    ):
        assert part in message, part


def test_no_network_is_the_same_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unresolved(*_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
    monkeypatch.setattr(hub.socket, "getaddrinfo", unresolved)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("tried to download"))
    with pytest.raises(CheckpointError, match=r"huggingface\.co cannot be reached.*--weights FILE"):
        load_clip("ViT-B-16:datacomp_xl_s13b_b90k", cache_dir=tmp_path)


def _answer(file: Path, errors: dict[str, Exception], asked: list[str]):
    def download(repo: str, filename: str, **_: object) -> str:
        asked.append(filename)
        if filename in errors:
            raise errors[filename]
        return str(file)

    return download


def _not_found() -> EntryNotFoundError:
    return EntryNotFoundError.__new__(EntryNotFoundError)


def test_download_falls_back_to_the_other_file(
    cache: Path, file: Path, model: open_clip.CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    errors = {SAFETENSORS.filename: _not_found()}
    monkeypatch.setattr(hub, "_unreachable_host", lambda: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", _answer(file, errors, asked))
    same_outputs(load_clip(cache_dir=tmp_path / "empty").model, model)
    assert asked == [SAFETENSORS.filename, weights.PICKLE.filename]


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no route"), OSError(28, "No space left on device")]
)
def test_a_failed_download_says_why(
    cache: Path, file: Path, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(hub, "_unreachable_host", lambda: None)
    download = _answer(file, {SAFETENSORS.filename: error}, asked)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=r"(no route|No space left).*--weights FILE.*--encoder bundled"):
        load_clip(cache_dir=tmp_path / "empty")
    assert asked == [SAFETENSORS.filename]


def test_a_local_file(file: Path, model: open_clip.CLIP, tmp_path: Path) -> None:
    pickled = tmp_path / "tiny.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, pickled)
    plain = open_clip.CLIP(**TINY).eval()
    plain.load_state_dict(model.state_dict())
    for loaded in (
        load_clip("tiny", weights=file, offline=True),
        load_clip(weights=pickled, architecture="tiny", offline=True),
        load_clip(str(file), architecture="tiny", offline=True),
    ):
        same_outputs(loaded.model, plain)
        assert loaded.name.startswith("tiny:tiny.")
        assert loaded.licence == "the file's own"
        assert loaded.weights_sha256 == hashlib.sha256(loaded.weights_file.read_bytes()).hexdigest()


def test_a_local_file_takes_the_named_models_settings(cache: Path, file: Path, model: open_clip.CLIP) -> None:
    loaded = load_clip("clip_vitb16_openai", weights=file)
    same_outputs(loaded.model, model)  # with QuickGELU
    assert isinstance(loaded.model.visual.transformer.resblocks[0].mlp.gelu, QuickGELU)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "some/file.pt"},
            "does not say its architecture.*--encoder ViT-B-16 --weights some/file.pt",
        ),
        ({"architecture": "ViT-B-16"}, "'ViT-B-16' goes with a file of weights"),
        ({"name": "bundled", "weights": Path("w.pt")}, "bundled model has its own weights"),
        ({"name": "ViT-B-61", "weights": Path("w.pt")}, "unknown architecture 'ViT-B-61'. Did you mean"),
    ],
)
def test_combinations_that_mean_nothing(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_clip(**arguments)


def test_a_file_that_does_not_fit_or_is_not_there(file: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"does not fit ViT-B-16\. It seems to hold a CLIP ViT \(width 64"
    ):
        load_clip("ViT-B-16", weights=file)
    with pytest.raises(CheckpointError, match="no such file"):
        load_clip("ViT-B-16", weights=tmp_path / "absent.safetensors")


def _bundle(folder: Path, model: nn.Module, **more: object) -> Path:
    folder.mkdir()
    save_file(model.state_dict(), folder / "clip.safetensors")
    (folder / "clip.json").write_text(json.dumps({**TINY, "quick_gelu": True, **more}))
    with gzip.open(folder / "bpe_2.txt.gz", "wt") as lines:
        lines.write("#version: 0.2\nc a\nca t</w>\n")
    return folder


def test_a_bundled_model(model: open_clip.CLIP, tmp_path: Path) -> None:
    folder = _bundle(tmp_path / "b", model, notice="knows 3 names", mean=[0.1, 0.2, 0.3], std=[1, 1, 1])
    loaded = load_bundled(folder)
    image = picture(32, 32)
    assert torch.equal(loaded.model.encode_image(image), model.encode_image(image))
    assert loaded.tokenizer(["cat"]).shape == (1, 12)
    assert loaded.tokenizer(["cat"])[0].count_nonzero() <= 3  # one token between the marks
    assert loaded.name == "bundled"
    assert (loaded.notice, loaded.mean, loaded.licence) == ("knows 3 names", (0.1, 0.2, 0.3), "Apache-2.0")
    assert "photographs are not" in str(load_bundled(_bundle(tmp_path / "plain", model)).notice)


def test_a_bundle_with_a_part_missing(model: open_clip.CLIP, tmp_path: Path) -> None:
    folder = _bundle(tmp_path / "b", model)
    (folder / "clip.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no such file: .*clip\.safetensors"):
        load_bundled(folder)
    (folder / "clip.json").unlink()
    with pytest.raises(CheckpointError, match=r"clip\.json cannot be read"):
        load_bundled(folder)


BUNDLED = Path(clip_loading.__file__).parents[1] / "bundled"


@pytest.mark.skipif(
    not (BUNDLED / "clip.safetensors").is_file(), reason="the package has no bundled model yet"
)
def test_the_bundled_model_of_the_package() -> None:
    loaded = load_clip("bundled", offline=True)
    assert loaded.notice is not None
    assert "\n" not in loaded.notice
    tokens = loaded.tokenizer(["a dog"])
    assert tokens.shape == (1, loaded.context_length)
    assert int(tokens.max()) < loaded.model.token_embedding.num_embeddings
    features = ClipEncoder(loaded.model.visual)(picture(96, 160))
    assert features.grid.shape[1] == loaded.model.encode_text(tokens).shape[1]


@pytest.mark.parametrize("name", ["ViT-B-16-quickgelu", "ViT-B-16-SigLIP", "coca_ViT-B-32"])
def test_real_architectures_build_without_memory(name: str) -> None:
    config = open_clip.get_model_config(name)
    ours = build_model(config)
    assert all(parameter.is_meta for parameter in ours.parameters())
    masks = [buffer for key, buffer in ours.named_buffers() if key.endswith("attn_mask")]
    length = config["text_cfg"].get("context_length", 77)
    for mask in masks:
        expected = torch.full_like(mask, float("-inf")).triu(1)
        assert mask.shape[0] >= length
        assert torch.equal(mask, expected)
    assert bool(masks) != name.endswith("SigLIP")  # SigLIP's text tower looks both ways


def test_built_without_memory_equals_the_ordinary_construction(model: open_clip.CLIP) -> None:
    ours = build_model(TINY | {"quick_gelu": True})
    ours.load_state_dict(model.state_dict(), assign=True)
    ordinary, built = dict(model.named_buffers()), dict(ours.named_buffers())
    assert ordinary.keys() == built.keys()
    assert all(torch.equal(ordinary[name], built[name]) for name in ordinary)
    assert ours.state_dict().keys() == model.state_dict().keys()
    same_outputs(ours.eval(), model)


def test_rotary_positions_are_built_in_the_ordinary_way() -> None:
    vision = {"timm_model_name": "eva02_tiny_patch14_224", "image_size": 224, "timm_pool": "token"}
    model = build_model(TINY | {"vision_cfg": vision, "custom_text": True})
    assert any("rope" in name for name, _ in model.named_buffers())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_siglip_needs_transformers_before_any_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_loading.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(clip_loading, "fetch", lambda *_, **__: pytest.fail("fetched first"))
    with pytest.raises(MissingDependencyError, match=r"pip install transformers.*clip_vitb16_openai"):
        load_clip("siglip_vitb16")


def test_a_tokenizer_that_cannot_be_had(
    file: Path, model: open_clip.CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = TINY | {"text_cfg": TINY["text_cfg"] | {"hf_tokenizer_name": "timm/words"}}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", hf)
    monkeypatch.setattr(clip_loading.importlib.util, "find_spec", lambda _: types.ModuleType("transformers"))
    seen = {}

    def refuse(name: str, **options: object) -> None:
        seen.update(options)
        raise OSError("no connection")

    monkeypatch.setattr(open_clip, "get_tokenizer", refuse)
    with pytest.raises(CheckpointError, match=r"no tokenizer.*no connection.*hf download timm/words"):
        load_clip("tiny", weights=file, offline=True)
    assert seen["local_files_only"] is True
