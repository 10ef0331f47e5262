"""The bundled guide: the affinity ViT, which is not DINO but is read as one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from ovseg.encoders.checkpoints import load_into, load_state_dict, read_json, sha256_of
from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.positions import PositionRule
from ovseg.encoders.weights import BUNDLED
from ovseg.errors import CheckpointError, ConfigError

CONFIG, WEIGHTS = "affinity.json", "affinity.safetensors"


def build_guide_trunk(arguments: Mapping[str, Any]) -> VisionTransformer:
    """The ViT without weights: its parameters are on the meta device, for `checkpoints.load_into` to fill.

    Args:
        arguments: of timm's `VisionTransformer`.
    """
    with torch.device("meta"):
        return VisionTransformer(**arguments)


def load_bundled_guide(folder: Path | None = None) -> DinoEncoder:
    """The affinity ViT of the package as a guide: eval mode, float32, no gradients, on the CPU.

    It learned from the masks of drawn scenes which patches show one thing (`ovseg/bundled/MODEL_CARD.md`).
    Final tokens, and keys, values and q + k of the last block, were all trained for it: a cosine above 0.2
    says "same". Other blocks and the class token were not.

    Args:
        folder: another folder with `affinity.json` and `affinity.safetensors`; None is the package's own.

    Raises:
        CheckpointError: files are missing or damaged, or do not fit each other.
    """
    folder = folder or Path(str(files("ovseg") / "bundled"))
    described, weights = read_json(folder / CONFIG), folder / WEIGHTS
    try:
        trunk = build_guide_trunk(described["arguments"])
        guide = DinoEncoder(
            trunk,
            mean=described["mean"],
            std=described["std"],
            positions=PositionRule(described["positions"]),
            name=BUNDLED,
            weights_sha256=sha256_of(weights) if weights.is_file() else "",
        )
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{folder / CONFIG} describes no ViT: {error!r}") from error
    load_into(trunk, load_state_dict(weights), source=str(weights), architecture="the bundled affinity ViT")
    return guide.eval().requires_grad_(False)
