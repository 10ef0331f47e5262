"""Golden cases whose settings are a file of their own, and banks of two states."""

from __future__ import annotations

import json
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from golden_cases import Case
from torch import Tensor, nn

from ovseg.anomaly_structures import StateBank
from ovseg.encoders.clip import ClipEncoder


def settings_of(case: Case) -> dict[str, Any]:
    return json.loads((case.folder / "settings.json").read_text())


def vision_tower(case: Case, prefix: str = "") -> ClipEncoder:
    """The case's image tower in open_clip's own class, weights loaded strictly."""
    settings = settings_of(case)
    state = {name[len(prefix) :]: value for name, value in case.weights.items() if name.startswith(prefix)}
    cells = round((len(state["positional_embedding"]) - 1) ** 0.5)
    visual = open_clip.transformer.VisionTransformer(
        image_size=cells * settings["patch"],
        patch_size=settings["patch"],
        width=settings["width"],
        layers=settings["blocks"],
        heads=settings["heads"],
        mlp_ratio=len(state["transformer.resblocks.0.mlp.c_fc.weight"]) / settings["width"],
        output_dim=settings["joint_dim"],
        act_layer={"gelu": nn.GELU, "quick_gelu": open_clip.transformer.QuickGELU}[settings["activation"]],
    )
    visual.load_state_dict(state, strict=True)
    return ClipEncoder(visual).eval().requires_grad_(False)


def as_rgb(encoder: ClipEncoder, image: Tensor) -> Tensor:
    """Normalised pixels back to [0, 1]."""
    return image * encoder.std + encoder.mean


def random_states(prompts_per_state: int = 3, dim: int = 32, seed: int = 3) -> StateBank:
    """Random unit vectors as prompts of the two states."""
    generator = torch.Generator().manual_seed(seed)
    prompts = F.normalize(torch.randn(2 * prompts_per_state, dim, generator=generator), dim=-1)
    return StateBank(F.normalize(prompts.unflatten(0, (2, -1)).mean(dim=1), dim=-1), prompts)


def random_batch(count: int, height: int, width: int) -> Tensor:
    """RGB in [0, 1], the second image flat grey."""
    images = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))
    images[1:2] = 0.5
    return images
