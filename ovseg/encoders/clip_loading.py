"""From a name to a CLIP with its tokenizer: local file, Hugging Face cache, download, package."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from ovseg.encoders.checkpoints import load_into, load_state_dict, read_json, sha256_of
from ovseg.encoders.hub import fetch, find_cached, is_offline, reason_of
from ovseg.encoders.weights import (
    BUNDLED,
    DEFAULT,
    PREFERENCE,
    RGB,
    WEIGHTS,
    WeightsEntry,
    find_entry,
    is_architecture,
)
from ovseg.errors import CheckpointError, ConfigError, MissingDependencyError, unknown_name

#: Names that are files, also when the file is missing.
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
#: What a run with the bundled model says, unless its config has words of its own.
NOTICE = (
    "the bundled model was trained on drawn scenes and knows the names in them; photographs are not among "
    "what it knows (--encoder clip_vitb16_openai is made for those)"
)


@dataclass(frozen=True)
class LoadedClip:
    """A CLIP, ready to use.

    Attributes:
        model: open_clip's `CLIP` or `CustomTextCLIP`: float32, eval mode, no gradients, on the CPU.
        tokenizer: called with texts, gives token ids `(N, context_length)`.
        context_length: tokens per prompt, with those that mark its start and end.
        mean, std: RGB statistics for values in [0, 1].
        name: how the weights are called, for messages and manifests.
        weights_sha256: of the file that was read.
        licence: of the weights.
        notice: one line that a user should see, or None.
        weights_file: the file that was read.
        source: what the model is called in messages about its weights.
    """

    model: open_clip.CLIP | open_clip.CustomTextCLIP | open_clip.CoCa
    tokenizer: Any
    context_length: int
    mean: RGB
    std: RGB
    name: str
    weights_sha256: str
    licence: str
    notice: str | None
    weights_file: Path
    source: str = ""

    def load_image_tower(self) -> None:
        """Fills the image tower, where the rest was loaded without it."""
        load_into(
            self.model,
            load_state_dict(self.weights_file),
            source=str(self.weights_file),
            architecture=self.source,
            only=_of_image_tower,
        )


def _of_image_tower(name: str) -> bool:
    return name.startswith("visual.")


def _of_the_rest(name: str) -> bool:
    return not _of_image_tower(name)


def load_clip(
    name: str = DEFAULT,
    *,
    weights: Path | None = None,
    architecture: str | None = None,
    offline: bool | None = None,
    cache_dir: Path | None = None,
    image_tower: bool = True,
) -> LoadedClip:
    """Loads a CLIP by name.

    Weights come from `weights` if it is given, else from the Hugging Face cache, else by download.

    Args:
        name: of the table in `ovseg.encoders.weights` ("clip_vitb16_openai", "bundled"), or
            "architecture:tag" of open_clip's table, or the path of a file (then `architecture` is needed).
        weights: a local file instead of the named weights; then `name` may be an architecture alone. Its
            hash is reported, not checked.
        architecture: model config of open_clip for a local file, where the name does not say it.
        offline: never use the network; None follows HF_HUB_OFFLINE.
        cache_dir: Hugging Face cache, by default HF_HUB_CACHE.
        image_tower: whether to fill it now; else it takes no memory until `LoadedClip.load_image_tower`.

    Raises:
        ConfigError: unknown name, tag or architecture.
        CheckpointError: weights or tokenizer are not there, cannot be had, or do not fit.
        MissingDependencyError: the tokenizer needs a package that is not installed.
    """
    if weights is None and (name.endswith(SUFFIXES) or Path(name).is_file()):
        weights = Path(name)
        if architecture is None:
            raise ConfigError(
                f"{name} does not say its architecture (QuickGELU cannot be seen from weights): name it, "
                f"e.g. --encoder ViT-B-16 --weights {name}"
            )
    if weights is None and architecture is not None:
        raise ConfigError(
            f"architecture '{architecture}' goes with a file of weights: pass one, or name both in one as "
            f"{architecture}:TAG"
        )
    if weights is None and name == BUNDLED:
        return load_bundled(image_tower=image_tower)
    offline = is_offline() if offline is None else offline
    entry = find_entry(name) if weights is None else _entry_for_file(architecture or name, weights)
    config = open_clip.get_model_config(entry.architecture)
    config["quick_gelu"] = entry.quick_gelu
    if "hf_tokenizer_name" in config["text_cfg"]:
        _require_transformers(entry.name)  # before anything is fetched
    path = fetch(entry, offline=offline, cache_dir=cache_dir) if weights is None else weights
    state = load_state_dict(path)
    tokenizer = _tokenizer(entry, config, offline, cache_dir)
    model = build_model(config)
    only = None if image_tower else _of_the_rest
    load_into(model, state, source=str(path), architecture=entry.architecture, only=only)
    return LoadedClip(
        model.eval().requires_grad_(False),
        tokenizer,
        int(config["text_cfg"].get("context_length", 77)),
        entry.mean,
        entry.std,
        entry.name,
        sha256_of(path),
        entry.licence,
        None,
        path,
        entry.architecture,
    )


def load_bundled(folder: Path | None = None, *, image_tower: bool = True) -> LoadedClip:
    """The small CLIP of the package: `clip.json` (model config), `clip.safetensors`, `bpe_*.txt.gz`.

    Args:
        folder: another folder of that form; None is the package's own.
        image_tower: see `load_clip`.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    folder = folder or Path(str(files("ovseg") / "bundled"))
    described = read_json(folder / "clip.json")
    config = described.get("model_cfg", described)
    config = {key: config[key] for key in _CONFIG_KEYS if key in config}
    merges = sorted(folder.glob("bpe_*.txt.gz"))
    if not merges or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
        raise CheckpointError(
            f"{folder} is no bundled model: expected clip.json, clip.safetensors, bpe_*.txt.gz"
        )
    weights = folder / WEIGHTS[BUNDLED].files[0].filename
    model = build_model(config)
    called = "the bundled model"
    only = None if image_tower else _of_the_rest
    load_into(model, load_state_dict(weights), source=str(weights), architecture=called, only=only)
    context_length = int(config["text_cfg"].get("context_length", 77))
    statistics = described.get("preprocess_cfg", described)
    entry = WEIGHTS[BUNDLED]
    return LoadedClip(
        model.eval().requires_grad_(False),
        SimpleTokenizer(bpe_path=str(merges[0]), context_length=context_length),
        context_length,
        _rgb(statistics.get("mean", entry.mean)),
        _rgb(statistics.get("std", entry.std)),
        BUNDLED,
        sha256_of(weights),
        entry.licence,
        str(described.get("notice", NOTICE)),
        weights,
        called,
    )


def default_encoder(cache_dir: Path | None = None) -> str:
    """The best of the weights in the local cache, by `weights.PREFERENCE`; else the default download."""
    return next((name for name in PREFERENCE if find_cached(WEIGHTS[name], cache_dir)), DEFAULT)


_CONFIG_KEYS = (
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "quick_gelu",
    "custom_text",
    "init_logit_scale",
    "init_logit_bias",
    "nonscalar_logit_scale",
)


def _rgb(values: Any) -> RGB:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _entry_for_file(described_by: str, path: Path) -> WeightsEntry:
    """How to build the model for a user's file: like a named entry, or a bare architecture."""
    if is_architecture(described_by):
        config = open_clip.get_model_config(described_by)
        half = "siglip" in described_by.lower()
        like = WeightsEntry(
            "",
            described_by,
            "",
            "",
            "",
            quick_gelu=bool(config.get("quick_gelu")),
            mean=WEIGHTS["siglip_vitb16"].mean if half else WEIGHTS[DEFAULT].mean,
            std=WEIGHTS["siglip_vitb16"].std if half else WEIGHTS[DEFAULT].std,
            kind="siglip" if half else "clip",
        )
    elif described_by == BUNDLED:
        raise ConfigError(
            "the bundled model has its own weights: leave --weights out, or name an architecture"
        )
    elif described_by in WEIGHTS or ":" in described_by:
        like = find_entry(described_by)
    else:
        raise unknown_name("architecture", described_by, [*WEIGHTS, *open_clip.list_models()])
    return replace(like, name=f"{like.architecture}:{path.name}", licence="the file's own", repo="", tag="")


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """An open_clip model without weights: its parameters are on the meta device and take no memory.

    `checkpoints.load_into` fills them. Buffers that are in no checkpoint (the text tower's causal mask)
    have their values already.

    Args:
        config: open_clip's model config.
    """
    config = dict(config)
    custom_text = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    if "multimodal_cfg" in config:
        kind = open_clip.CoCa
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"] = config["vision_cfg"] | {"timm_model_pretrained": False}
    if "hf_model_name" in config["text_cfg"]:
        _require_transformers(config["text_cfg"]["hf_model_name"])
        config["text_cfg"] = config["text_cfg"] | {"hf_model_pretrained": False}
    with torch.device("meta"):
        model = kind(**config)
    saved = set(model.state_dict())
    for name, buffer in list(model.named_buffers()):
        if name in saved or not buffer.is_meta:
            continue
        owner, _, leaf = name.rpartition(".")
        if leaf != "attn_mask":
            return kind(**config)  # a buffer that only the ordinary construction can fill (rotary positions)
        mask = torch.full(buffer.shape, float("-inf")).triu_(1)
        model.get_submodule(owner).register_buffer(leaf, mask, persistent=False)
    return model


def _tokenizer(entry: WeightsEntry, config: Mapping[str, Any], offline: bool, cache_dir: Path | None) -> Any:
    source = config["text_cfg"].get("hf_tokenizer_name")
    if not source:
        return open_clip.get_tokenizer(entry.architecture)
    try:
        only_local = {"local_files_only": True} if offline else {}
        cache = None if cache_dir is None else str(cache_dir)
        return open_clip.get_tokenizer(entry.architecture, cache_dir=cache, **only_local)
    except Exception as error:
        raise CheckpointError(
            f"no tokenizer for encoder '{entry.name}': the files of {source} are not in the Hugging Face "
            f"cache and cannot be downloaded ({reason_of(error)}). Fetch them where there is a network "
            f"(hf download {source} --include 'tokenizer*' 'special_tokens_map.json') and copy the cache, or "
            f"use an encoder with CLIP's own tokenizer, such as {DEFAULT} or {BUNDLED}"
        ) from error


def _require_transformers(name: str) -> None:
    if importlib.util.find_spec("transformers") is None:
        raise MissingDependencyError(
            f"'{name}' reads words with a Hugging Face tokenizer: pip install transformers sentencepiece, or "
            f"use an encoder with CLIP's own tokenizer, such as {DEFAULT}"
        )
