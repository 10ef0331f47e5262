"""From a name to a network beside CLIP: the same files, caches, offline rules and errors as for CLIP."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, cat, nn

from ovseg.encoders.checkpoints import load_into, load_state_dict, sha256_of
from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.hub import fetch, is_offline
from ovseg.encoders.positions import PositionRule
from ovseg.encoders.weights import BUNDLED, WEIGHTS, Kind, WeightsEntry, find_part
from ovseg.errors import ConfigError

if TYPE_CHECKING:
    from ovseg.encoders.sam import SamEncoder


def split_part_name(part: str) -> tuple[str, Path | None]:
    """A part as users name it: `NAME`, or `NAME=FILE` for that architecture with their own file.

    Raises:
        ConfigError: one side of the equals sign is empty.
    """
    name, equals, file = part.partition("=")
    if equals and not (name and file):
        raise ConfigError(f"'{part}' must be NAME or NAME=FILE, e.g. dino_vitb8=weights/dino.pth")
    return name, Path(file).expanduser() if equals else None


def locate(
    part: str,
    *kinds: Kind,
    weights: Path | None = None,
    offline: bool | None = None,
    cache_dir: Path | None = None,
) -> tuple[WeightsEntry, Path]:
    """What the table says of a part, and its file: the user's own, else cached, else downloaded.

    Args:
        part: `NAME` of the table, or `NAME=FILE`.
        kinds: what will do.
        weights: a file instead of the named weights. Its hash is reported, not checked.
        offline: never use the network; None follows HF_HUB_OFFLINE.
        cache_dir: Hugging Face cache, by default HF_HUB_CACHE.

    Raises:
        ConfigError: no such name, or of another kind; two files.
        CheckpointError: the file is not there and not to be had, or its hash is wrong.
    """
    name, file = split_part_name(part)
    if file is not None and weights is not None:
        raise ConfigError(f"'{part}' names a file, and weights={weights} another: give one of them")
    file = file or weights
    if name == BUNDLED and file is not None:
        raise ConfigError(f"the bundled networks have their own weights: leave {file} out, or name another")
    entry = find_part(name, *kinds)
    if file is not None:
        own = f"{name}:{file.name}"
        return replace(entry, name=own, licence="the file's own", repo="", origin=""), file
    return entry, fetch(entry, offline=is_offline() if offline is None else offline, cache_dir=cache_dir)


def load_guide(
    name: str,
    *,
    weights: Path | None = None,
    offline: bool | None = None,
    cache_dir: Path | None = None,
) -> DinoEncoder | SamEncoder:
    """A guide by name: a DINO of any generation, a SAM, or "bundled".

    Files may have timm's names or those of the DINO, DINOv2, DINOv3 or SAM release.

    Args:
        name, weights, offline, cache_dir: see `locate`.

    Returns:
        In eval mode, float32, without gradients, on the CPU.

    Raises:
        ConfigError: unknown name, or one that is no guide.
        CheckpointError: weights are not there, cannot be had, or do not fit.
    """
    if name == BUNDLED and weights is None:
        from ovseg.encoders.bundled_guide import load_bundled_guide

        return load_bundled_guide()
    known = WEIGHTS.get(split_part_name(name)[0])
    if known is not None and known.kind == "sam":
        return load_sam(name, weights=weights, offline=offline, cache_dir=cache_dir)
    entry, path = locate(name, "dino", "sam", weights=weights, offline=offline, cache_dir=cache_dir)
    state = timm_names(load_state_dict(path))
    trunk = build_trunk(entry.architecture, qkv_bias=True if "blocks.0.attn.q_bias" in state else None)
    load_into(trunk, state, source=str(path), architecture=entry.architecture)
    guide = DinoEncoder(
        trunk,
        mean=entry.mean,
        std=entry.std,
        positions=PositionRule(entry.positions),
        name=entry.name,
        weights_sha256=sha256_of(path),
    )
    return guide.eval().requires_grad_(False)


def load_sam(
    name: str,
    *,
    weights: Path | None = None,
    offline: bool | None = None,
    cache_dir: Path | None = None,
) -> SamEncoder:
    """A SAM by name: one of the original three, or "bundled".

    Args:
        name, weights, offline, cache_dir: see `locate`.

    Returns:
        In eval mode, float32, without gradients, on the CPU.

    Raises:
        ConfigError: unknown name, or one that is no SAM.
        CheckpointError: weights are not there, cannot be had, or do not fit.
    """
    from ovseg.encoders import bundled_sam
    from ovseg.encoders.sam import SamEncoder

    if name == BUNDLED and weights is None:
        path = Path(bundled_sam.__file__).parents[1] / "bundled" / bundled_sam.WEIGHTS
        return SamEncoder(bundled_sam.load_bundled_sam(), name=BUNDLED, weights_sha256=sha256_of(path))
    from segment_anything import sam_model_registry

    entry, path = locate(name, "sam", weights=weights, offline=offline, cache_dir=cache_dir)
    state = load_state_dict(path)
    sam = _without_memory(sam_model_registry[entry.architecture])
    load_into(sam, state, source=str(path), architecture=f"SAM {entry.architecture}")
    encoder = SamEncoder(sam, name=entry.name, weights_sha256=sha256_of(path))
    return encoder.eval().requires_grad_(False)


def build_trunk(architecture: str, **options: Any) -> nn.Module:
    """A timm model without its head and without weights, for `checkpoints.load_into` to fill.

    Args:
        architecture: timm's name.
        options: of its constructor; None leaves one at its default.
    """
    return _without_memory(lambda: timm.create_model(architecture, num_classes=0, **options))


def _without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """The model with its parameters on the meta device, where its buffers allow that."""
    with torch.device("meta"):
        model = build()
    saved = set(model.state_dict())
    if any(buffer.is_meta for name, buffer in model.named_buffers() if name not in saved):
        return build()  # a buffer that only the ordinary construction fills (rotary positions)
    return model


#: What wraps a backbone in training.
_WRAPPED = re.compile(r"^(module\.|_orig_mod\.|teacher\.|backbone\.)+")
#: Projection heads, mask tokens, fixed buffers, a norm for local crops: of use in training only.
_TRAINING_ONLY = re.compile(
    r"^(head|dino_head|ibot_head|local_cls_norm)\.|^mask_token$|^rope_embed\.|\.bias_mask$"
)
_CHUNK = re.compile(r"^blocks\.\d+\.(\d+\.)")


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a DINO, DINOv2 or DINOv3 release under timm's names; those of timm stay as they are.

    DINOv2 with registers: timm gives positions to patches only, so the class token's is added to it. DINOv3:
    keys have no bias; where queries and values have none but zeros, neither has timm's model.

    Args:
        state: what `load_state_dict` gave.
    """
    names: dict[str, Tensor] = {}
    for name, value in state.items():
        name = _CHUNK.sub(r"blocks.\1", _WRAPPED.sub("", name))
        if not _TRAINING_ONLY.search(name):
            names[name] = value
    if "register_tokens" in names and {"cls_token", "pos_embed"} <= names.keys():
        names["reg_token"] = names.pop("register_tokens")
        names["cls_token"] = names["cls_token"] + names["pos_embed"][:, :1]
        names["pos_embed"] = names["pos_embed"][:, 1:]
    return _dinov3_names(names) if "storage_tokens" in names else names


def _dinov3_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.endswith(".attn.qkv.bias"):
            query, _, values = value.chunk(3)
            names[name.replace("qkv.bias", "q_bias")] = query
            names[name.replace("qkv.bias", "v_bias")] = values
        else:
            name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
            names["reg_token" if name == "storage_tokens" else name] = value
    biases = [name for name in names if name.endswith((".q_bias", ".v_bias"))]
    if biases and not cat([names[name] for name in biases]).any():
        names = {name: value for name, value in names.items() if name not in biases}
    return names
