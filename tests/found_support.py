"""FOUND models for tests: of a golden case, and small random ones."""

from __future__ import annotations

import timm.models.vision_transformer
import torch
from golden_cases import Case

from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.found import FoundEncoder
from ovseg.encoders.positions import PositionRule


def golden_found(case: Case) -> FoundEncoder:
    """The case's FOUND, weights loaded strictly, positions resampled as DINO's code does it."""
    prefix = "found.vit_encoder."
    state = {name.removeprefix(prefix): v for name, v in case.weights.items() if name.startswith(prefix)}
    patch = state["patch_embed.proj.weight"].shape[-1]
    trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch,
        patch_size=patch,
        embed_dim=state["pos_embed"].shape[2],
        depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        num_heads=3,
        num_classes=0,
    )
    trunk.load_state_dict(state, strict=True)
    found = FoundEncoder(DinoEncoder(trunk, positions=PositionRule(as_published=True)))
    decoder = {name: case.weights[f"found.decoder.{name}"] for name in ("weight", "bias")}
    found.decoder.load_state_dict(decoder)
    return found.eval().requires_grad_(False)


def tiny_dino(*, patch: int = 8, width: int = 48, seed: int = 3, **trunk: object) -> DinoEncoder:
    """A random ViT whose attention is not flat."""
    torch.manual_seed(seed)
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=4 * patch, patch_size=patch, embed_dim=width, depth=2, num_heads=3, num_classes=0, **trunk
    )
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return DinoEncoder(vit).eval().requires_grad_(False)
