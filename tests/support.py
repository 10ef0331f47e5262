"""Small random models, words and images that tests share."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import open_clip
import timm.models.vision_transformer
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from ovseg.encoders.bundled_sam import build_sam
from ovseg.encoders.clip import OPENAI_MEAN, OPENAI_STD, ClipEncoder
from ovseg.encoders.clip_loading import LoadedClip
from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.found import FoundEncoder
from ovseg.encoders.sam import SamEncoder
from ovseg.methods.clip_dinoiser import DinoiserConvolutions
from ovseg.structures import TextBank


def tiny_encoder(
    *, patch: int = 16, image_size: int = 64, width: int = 64, output_dim: int = 32
) -> ClipEncoder:
    """A random open_clip tower, large enough that attention matters."""
    generator = torch.Generator().manual_seed(7)
    visual = open_clip.transformer.VisionTransformer(
        image_size=image_size,
        patch_size=patch,
        width=width,
        layers=3,
        heads=4,
        mlp_ratio=2.0,
        output_dim=output_dim,
    )
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return ClipEncoder(visual).eval()


def tiny_part(part: str) -> nn.Module:
    """A random network that a method takes beside `tiny_encoder`."""
    generator = torch.Generator().manual_seed(13)

    def dino(patch: int) -> DinoEncoder:
        trunk = timm.models.vision_transformer.VisionTransformer(
            img_size=64, patch_size=patch, embed_dim=48, depth=2, num_heads=3, num_classes=0
        )
        return DinoEncoder(trunk)

    def sam() -> SamEncoder:
        config = {
            "image_encoder": dict(
                img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.0, out_chans=16,
                use_rel_pos=True, window_size=4, global_attn_indexes=(1,),
            ),
            "prompt_encoder": dict(mask_in_chans=4),
            "mask_decoder": dict(
                num_multimask_outputs=3, iou_head_depth=2, iou_head_hidden_dim=16,
                transformer=dict(depth=2, num_heads=2, mlp_dim=32),
            ),
        }  # fmt: skip
        return SamEncoder(build_sam(config))

    makers = {
        "sam": sam,
        "guide": lambda: dino(8),
        "saliency": lambda: FoundEncoder(dino(8)),
        "convolutions": lambda: DinoiserConvolutions(64, 16),
    }
    module = makers[part]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return module.eval().requires_grad_(False)


def random_bank(
    queries_per_class: tuple[int, ...] = (1, 3, 2, 1), dim: int = 32, **details: object
) -> TextBank:
    """A bank with synonyms for some classes."""
    generator = torch.Generator().manual_seed(11)
    classes = torch.repeat_interleave(torch.arange(len(queries_per_class)), torch.tensor(queries_per_class))
    embeddings = torch.nn.functional.normalize(torch.randn(len(classes), dim, generator=generator), dim=1)
    return TextBank(embeddings, classes, tuple(f"class{i}" for i in range(len(queries_per_class))), **details)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """RGB bytes with structure at several scales."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    image = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width] + rng.normal(0, 12, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def tiny_clip() -> LoadedClip:
    """A random two-tower CLIP as `load_clip` gives it: open_clip's own class and tokenizer."""
    torch.manual_seed(5)
    model = open_clip.CLIP(
        32,
        vision_cfg=dict(image_size=64, patch_size=16, width=64, layers=3, head_width=16, mlp_ratio=2.0),
        text_cfg=dict(context_length=32, vocab_size=49408, width=32, heads=2, layers=2),
    )
    with torch.no_grad():  # the default initialisation is too small to tell images apart
        for parameter in model.visual.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15)
    return LoadedClip(
        model=model.eval().requires_grad_(False),
        tokenizer=SimpleTokenizer(context_length=32),
        context_length=32,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        name="tiny",
        weights_sha256="0" * 64,
        licence="none",
        notice="a random model for tests",
        weights_file=Path("tiny.safetensors"),
    )


def load_tool(path: Path) -> ModuleType:
    """A script of `tools/` as a module."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_tool", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
