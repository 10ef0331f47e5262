"""Files of weights: what is read, what is refused and how that is said."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ovseg.encoders import checkpoints
from ovseg.encoders.checkpoints import describe, load_into, load_state_dict, sha256_of, verify_sha256
from ovseg.errors import CheckpointError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}


def same(state: dict[str, Tensor], expected: dict[str, Tensor] = STATE) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[k], expected[k]) for k in expected)


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "no_suffix"])
def test_safetensors_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name)
    assert same(load_state_dict(tmp_path / name))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {"model": {f"_orig_mod.{k}": v for k, v in state.items()}},
        lambda state: state | {"input_resolution": 224},
    ],
)
def test_torch_checkpoints_are_unwrapped(tmp_path: Path, wrap, legacy: bool) -> None:
    path = tmp_path / "w.pt"
    torch.save(wrap(STATE), path, _use_new_zipfile_serialization=not legacy)
    assert same(load_state_dict(path))


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "w.pt")
    assert set(load_state_dict(tmp_path / "w.pt")) == {"module.a", "b"}


class Attack:
    """Unpickling this writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return exec, (f"__import__('pathlib').Path({str(self.target)!r}).touch()",)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "disguised"])
def test_a_checkpoint_never_runs_code(tmp_path: Path, form: str) -> None:
    target = tmp_path / "owned"
    path = tmp_path / ("w.safetensors" if form == "disguised" else "w.pt")
    content = {"state_dict": STATE, "extra": Attack(target)}
    if form in ("zip", "disguised"):
        torch.save(content, path)
    elif form == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content["extra"]))
    with pytest.raises(CheckpointError) as raised:
        load_state_dict(path)
    assert not target.exists()
    if form != "disguised":
        assert "safetensors.torch.save_file" in str(raised.value)
        assert "exec" in str(raised.value) or form == "bare pickle"
    # the attack is a real one: this very file would have run
    if form == "zip":
        torch.load(path, weights_only=False)
        assert target.exists()


def test_torchscript_is_refused_with_the_fix(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ViT-B-16.pt", "w") as archive:
        archive.writestr("ViT-B-16/constants.pkl", b"")
        archive.writestr("ViT-B-16/code/__torch__.py", b"")
        archive.writestr("ViT-B-16/data.pkl", b"")
    with pytest.raises(CheckpointError, match=r"TorchScript.*clip_vitb16_openai.*torch\.jit\.load\(FILE\)"):
        load_state_dict(tmp_path / "ViT-B-16.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "zero bytes"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n",
            "Git LFS pointer of 64 bytes",
        ),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b"<html>", "is a web page"),
        (b"just words, long enough to be a file", "no torch checkpoint"),
        (b"PK\x03\x04 broken off", "no torch checkpoint"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    if suffix == ".safetensors" and "torch" in message:
        message = "damaged safetensors"
    with pytest.raises(CheckpointError, match=message):
        load_state_dict(path)


def test_missing_files_folders_and_truncation(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such file: .*absent\.pt"):
        load_state_dict(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_state_dict(tmp_path)
    for name, save in (("w.pt", torch.save), ("w.safetensors", save_file)):
        save(STATE, tmp_path / name)
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
        with pytest.raises(CheckpointError, match="damaged"):
            load_state_dict(tmp_path / name)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"epoch": 3}, {}, torch.ones(2)])
def test_no_named_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="holds no named tensors"):
        load_state_dict(tmp_path / "w.pt")


def test_hash_is_of_the_file_and_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"one")
    expected = hashlib.sha256(b"one").hexdigest()
    assert sha256_of(path) == expected
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
        assert sha256_of(path) == expected
    assert verify_sha256(path, expected.upper(), "a test") == expected
    path.write_bytes(b"other")
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(CheckpointError, match=f"{other}, but a test says {expected}"):
        verify_sha256(path, expected, "a test")


SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2},
    "text_cfg": {"context_length": 12, "vocab_size": 600, "width": 16, "heads": 2, "layers": 2},
}


def test_weights_go_in_as_float32() -> None:
    model, other = open_clip.CLIP(**SMALL), open_clip.CLIP(**SMALL)
    state = {name: value.half() for name, value in model.state_dict().items()}
    load_into(other, state | {"context_length": torch.tensor(12)}, source="f", architecture="small")
    for name, value in other.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float()), name


def test_forms_that_open_clip_evens_out() -> None:
    flat = open_clip.CLIP(**SMALL).state_dict()
    flat["logit_scale"] = flat["logit_scale"].reshape(1)
    custom = open_clip.CustomTextCLIP(**SMALL, init_logit_bias=-10.0)
    load_into(custom, flat, source="f", architecture="small")
    assert torch.equal(custom.state_dict()["text.token_embedding.weight"], flat["token_embedding.weight"])
    assert custom.logit_bias == 0


def test_misfits_name_keys_and_guess_the_architecture() -> None:
    with torch.device("meta"):
        other = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32"))
    state = dict(other.state_dict())
    del state["visual.proj"], state["ln_final.weight"]
    state["visual.extra"] = torch.ones(1)
    with pytest.raises(CheckpointError) as raised:
        load_into(open_clip.CLIP(**SMALL), state, source="some.pt", architecture="small")
    message = str(raised.value)
    assert "some.pt does not fit small" in message
    assert "2 missing: visual.proj, ln_final.weight" in message or "2 missing: ln_final.weight" in message
    assert "visual.extra" in message or "unexpected: visual" in message
    assert "of another shape: positional_embedding (77, 512) where (12, 16) is wanted" in message
    assert "..." in message
    assert len(message) < 1500


def test_architecture_is_recognised() -> None:
    for name in ("ViT-B-16", "ViT-L-14-336"):
        with torch.device("meta"):
            state = open_clip.CLIP(**open_clip.get_model_config(name)).state_dict()
        assert name in describe(state).split(": ")[1].split(" or ")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vision_model.post_layernorm.weight", "transformers package .*open_clip_model.safetensors"),
        ("visual.layer1.0.conv1.weight", "ResNet"),
        ("blocks.0.attn.qkv.weight", "without a text tower"),
        ("class_embedding", "only the image tower"),
        ("foo", "nothing that is known"),
    ],
)
def test_other_contents_are_recognised(name: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        load_into(nn.Linear(1, 1), {name: torch.ones(1)}, source="f", architecture="small")
