"""Reading files of weights, and never running what they say.

A `.pt` is a pickle, and a pickle is a program. Only its tensors are read, by torch's restricted unpickler;
there is no fallback and no switch for one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import safetensors
import safetensors.torch
import torch
from open_clip.model import convert_to_custom_text_state_dict
from torch import Tensor, nn

from ovseg.errors import CheckpointError

#: How many keys an error names.
SHOWN = 4

_TO_SAFETENSORS = (
    "Ask its author for a .safetensors file, or convert it where it cannot do harm: load it with torch in a "
    "sandbox, then safetensors.torch.save_file(state_dict, 'weights.safetensors')"
)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "teacher")
_PREFIXES = ("module.", "_orig_mod.")
#: Numbers that OpenAI's archives keep among the weights, and positions that transformers once stored.
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids")


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU, by name.

    The kind of file is seen from its content, not from its name. Wrappers (`{"state_dict": ...}`; of DINO's
    teacher and student, the teacher) and prefixes (`module.`) are taken off; other nested state dicts keep
    their name as a prefix (`{"decoder": {"weight": ...}}` is `decoder.weight`).

    Args:
        path: `.safetensors`, or a torch checkpoint (`.pt`, `.pth`, `.bin`).

    Raises:
        CheckpointError: no such file, damaged, not a checkpoint, or more than tensors inside.
    """
    head = _head(path)
    if _is_safetensors(path, head):
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is a damaged safetensors file ({error}): fetch it again"
            ) from error
    state = _tensors(_unwrap(_load_pickle(path)))
    if not state:
        raise CheckpointError(
            f"{path} holds no named tensors: expected a state dict, as model.state_dict() gives"
        )
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A torch checkpoint as it was saved, with all that stands beside its tensors, on the CPU.

    Raises:
        CheckpointError: no such file, damaged, no dict, or more than tensors and plain values inside.
    """
    _head(path)
    checkpoint = _load_pickle(path)
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} is no checkpoint: expected a dict, got {type(checkpoint).__name__}")
    return checkpoint


def _head(path: Path) -> bytes:
    if not path.exists():
        raise CheckpointError(f"no such file: {path}")
    if not path.is_file():
        raise CheckpointError(f"{path} is a folder: name the file of weights in it")
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if not head:
        raise CheckpointError(f"{path} is empty (zero bytes): the download broke off, fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a Git LFS pointer of {path.stat().st_size} bytes, not the weights: run "
            f"'git lfs pull' in its repository, or download the file itself"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(
            f"{path} is a web page, not weights (a login, licence form or error was saved in its place): "
            f"open its address in a browser, then download the file itself"
        )
    return head


def _is_safetensors(path: Path, head: bytes) -> bool:
    return path.suffix == ".safetensors" or head[8:9] == b"{"


def _load_pickle(path: Path) -> object:
    is_zip = zipfile.is_zipfile(path)
    if is_zip and _is_torchscript(path):
        raise CheckpointError(
            f"{path} is a TorchScript archive (OpenAI's original form), a program with weights inside. Use "
            f"the same weights as safetensors (--encoder clip_vitb16_openai and its like), or convert it "
            f"where it cannot do harm: safetensors.torch.save_file(torch.jit.load(FILE).state_dict(), "
            f"'weights.safetensors')"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # options beside weights: plain data
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {found[1]}" if found else "its pickle is no plain state dict"
        raise CheckpointError(
            f"{path} holds more than tensors ({what}) and was not loaded: such a checkpoint can run any code "
            f"on this machine. {_TO_SAFETENSORS}"
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged or no torch checkpoint ({reason}): fetch it again. {_TO_SAFETENSORS}"
        ) from error


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name.endswith("/constants.pkl") for name in names) or any("/code/" in name for name in names)


def _unwrap(checkpoint: object) -> object:
    while isinstance(checkpoint, Mapping):
        inner = next((checkpoint[key] for key in _WRAPPERS if isinstance(checkpoint.get(key), Mapping)), None)
        if inner is None:
            break
        checkpoint = inner
    return checkpoint


def _tensors(checkpoint: object) -> dict[str, Tensor]:
    if not isinstance(checkpoint, Mapping):
        return {}
    named = {k: v for k, v in checkpoint.items() if isinstance(k, str)}
    tensors = {k: v for k, v in named.items() if isinstance(v, Tensor)}
    parts = {k: v for k, v in named.items() if isinstance(v, Mapping)}
    return tensors or {f"{part}.{k}": v for part, inner in parts.items() for k, v in _tensors(inner).items()}


def sha256_of(path: Path) -> str:
    """The file's hash, lower-case hex; computed once per file and modification."""
    status = path.stat()
    return _sha256(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified_ns: int) -> str:
    del size, modified_ns  # part of the cache's key
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_sha256(path: Path, expected: str, source: str) -> str:
    """The file's hash, after checking it.

    Args:
        path: the file.
        expected: hash that it should have, hex.
        source: who says so, for the message.

    Raises:
        CheckpointError: the hashes differ; both are named.
    """
    actual = sha256_of(path)
    if actual != expected.lower():
        raise CheckpointError(
            f"{path} has sha256 {actual}, but {source} says {expected.lower()}: damaged, or another file. "
            f"Delete it and fetch it again, or pass it with --weights FILE if that is what you want"
        )
    return actual


def load_into(
    model: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    architecture: str,
    only: Callable[[str], bool] | None = None,
) -> None:
    """Puts weights into a model, as float32 and without a second copy of them in memory.

    The tensors become the model's parameters, so that it may have been built on the meta device.

    Args:
        model: an open_clip `CLIP` or `CustomTextCLIP`, or any other whose names are those of the weights.
        state: what `load_state_dict` gave.
        source: the file, for messages.
        architecture: what the model is called, for messages.
        only: which names to fill, all of them by default; all are checked.

    Raises:
        CheckpointError: names or shapes differ; the message says which, and what the file seems to hold.
    """
    state = _adapted(state, model)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    different = [
        f"{name} {given[name]} where {shape} is wanted"
        for name, shape in wanted.items()
        if name in given and given[name] != shape
    ]
    if missing or unexpected or different:
        found = (("missing", missing), ("unexpected", unexpected), ("of another shape", different))
        details = "; ".join(f"{len(keys)} {what}: {_first(keys)}" for what, keys in found if keys)
        raise CheckpointError(
            f"{source} does not fit {architecture}. It seems to hold {describe(state)}. {details}"
        )
    floats = {
        k: v.float() if v.is_floating_point() else v for k, v in state.items() if only is None or only(k)
    }
    model.load_state_dict(floats, assign=True, strict=only is None)


def _adapted(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Differences in form that open_clip's own loader evens out too."""
    adapted = {name: value for name, value in state.items() if name not in _NO_WEIGHTS}
    if "positional_embedding" in adapted and not hasattr(model, "positional_embedding"):
        adapted = convert_to_custom_text_state_dict(adapted)
    for name in ("logit_scale", "logit_bias"):
        parameter = getattr(model, name, None)
        if parameter is not None and name in adapted and adapted[name].numel() == parameter.numel():
            adapted[name] = adapted[name].reshape(parameter.shape)
    if getattr(model, "logit_bias", None) is not None and "logit_scale" in adapted:
        adapted.setdefault("logit_bias", torch.zeros_like(adapted["logit_scale"]))
    return adapted


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")


def describe(state: Mapping[str, Tensor]) -> str:
    """What a state dict seems to hold, in words."""
    if "vision_model.embeddings.class_embedding" in state or "vision_model.post_layernorm.weight" in state:
        return (
            "a model in the form of the transformers package (take open_clip_model.safetensors or "
            "open_clip_pytorch_model.bin of the same repository instead)"
        )
    if any(name.startswith(("embeddings.", "vision_encoder.", "dinov2.embeddings.")) for name in state):
        return (
            "a model in the form of the transformers package (take the authors' own file, or that of timm's "
            "repository)"
        )
    if "visual.conv1.weight" in state and "visual.positional_embedding" in state:
        return _describe_vit(state)
    if "visual.trunk.patch_embed.proj.weight" in state:
        width, _, *patch = state["visual.trunk.patch_embed.proj.weight"].shape
        blocks = _layers(state, "visual.trunk.blocks.")
        return f"a CLIP with a timm image tower (width {width}, patch {patch[0]}, {blocks} layers; SigLIP?)"
    if "patch_embed.proj.weight" in state and state["patch_embed.proj.weight"].ndim == 4:
        width, _, *patch = state["patch_embed.proj.weight"].shape
        size = f"width {width}, patch {patch[0]}, {_layers(state, 'blocks.')} layers"
        registers = f", {state['reg_token'].shape[1]} registers" if "reg_token" in state else ""
        return f"a vision transformer without a text tower ({size}{registers})"
    clues = {
        "visual.layer1.0.conv1.weight": "a CLIP ResNet, which has no transformer block to open",
        "class_embedding": "only the image tower of a CLIP; the text tower is needed too",
        "image_encoder.patch_embed.proj.weight": "a SAM model",
        "patch_embed.proj.weight": "a vision transformer without a text tower (DINO, timm)",
        "blocks.0.attn.qkv.weight": "a vision transformer without a text tower (DINO, timm)",
    }
    return next((words for name, words in clues.items() if name in state), "nothing that is known here")


def _describe_vit(state: Mapping[str, Tensor]) -> str:
    width, _, *patch = state["visual.conv1.weight"].shape
    cells = state["visual.positional_embedding"].shape[0] - 1
    facts = {
        "width": width,
        "patch_size": patch[0],
        "layers": _layers(state, "visual.transformer.resblocks."),
        "image_size": round(cells**0.5) * patch[0],
    }
    projection = state.get("visual.proj")
    dim = None if projection is None else projection.shape[1]
    vocabulary = next((state[k].shape[0] for k in state if k.endswith("token_embedding.weight")), None)
    names = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        vision, text = config["vision_cfg"], config["text_cfg"]
        same = all(vision.get(key) == value for key, value in facts.items())
        if same and config["embed_dim"] == dim and text.get("vocab_size", 49408) == vocabulary:
            names.append(name)
    size = f"width {width}, patch {patch[0]}, {facts['layers']} layers, {facts['image_size']} px"
    words = f"a CLIP ViT ({size})"
    return f"{words}: {' or '.join(names)}" if names else words


def _layers(names: Iterable[str], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


def read_json(path: Path) -> dict:
    """A JSON object from a file.

    Raises:
        CheckpointError: missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return content
