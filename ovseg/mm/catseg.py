"""CAT-Seg as mmsegmentation ships it: a project beside the package, imported from where it lies.

Cho et al., CVPR 2024 (arXiv 2303.11797). `projects/CAT-Seg` of VBTI-development/onedl-mmsegmentation (GitHub,
00215ad7) is no part of the installed package, and two things keep it from running: it imports a name of
huggingface_hub that version 2 has lost, and when built it downloads CLIP as TorchScript, which runs code.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.errors
import torch
from mmengine.model import BaseModule
from torch import nn

from ovseg.errors import ConfigError, unknown_name

#: What cat_seg imports, and where huggingface_hub has it now.
LOST = "huggingface_hub.utils._errors"
#: OpenAI's towers: shared dimensions, px, blocks, width, patch; context, vocabulary, width, heads, blocks.
CLIP_SHAPES = {
    "ViT-B/16": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
    "ViT-L/14@336px": (768, 336, 24, 1024, 14, 77, 49408, 768, 12, 12),
}


def import_project(folder: str | Path) -> types.ModuleType:
    """The package `cat_seg` of a CAT-Seg folder, whose modules register with mmseg.

    Args:
        folder: `projects/CAT-Seg` of a checkout of mmsegmentation.

    Raises:
        ConfigError: it is not there.
    """
    if "cat_seg" in sys.modules:
        return sys.modules["cat_seg"]
    start = Path(folder).expanduser() / "cat_seg" / "__init__.py"
    if not start.is_file():
        raise ConfigError(
            f"no CAT-Seg in {folder}: expected {start}. It is no part of the mmsegmentation package: check "
            f"out github.com/VBTI-development/onedl-mmsegmentation and say "
            f"--cfg-options model.project=CHECKOUT/projects/CAT-Seg"
        )
    if importlib.util.find_spec("huggingface_hub.utils._errors") is None:
        stand_in = types.ModuleType(LOST)
        vars(stand_in)["LocalEntryNotFoundError"] = huggingface_hub.errors.LocalEntryNotFoundError
        sys.modules.setdefault(LOST, stand_in)
    spec = importlib.util.spec_from_file_location(
        "cat_seg", start, submodule_search_locations=[str(start.parent)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cat_seg"] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules["cat_seg"]
        raise
    return module


def build_backbone(config: Mapping[str, Any], clip_shape: Sequence[int] | None = None) -> nn.Module:
    """`CLIPOVCATSeg` without a download: its CLIP is empty until a checkpoint of the whole model is loaded.

    Args:
        config: as in CAT-Seg's configs; its class files are not read.
        clip_shape: of CLIP's towers; None is that of `clip_pretrained`, see `CLIP_SHAPES`.

    Raises:
        ConfigError: a CLIP of another kind (the open_clip ones return no dense features there).
    """
    from mmseg.registry import MODELS

    options = dict(config)
    name = options.get("clip_pretrained", "ViT-B/16")
    if clip_shape is None and name not in CLIP_SHAPES:
        raise unknown_name("CLIP of CAT-Seg", name, CLIP_SHAPES)
    base: Any = MODELS.get("CLIPOVCATSeg")
    if base is None:
        raise ConfigError("CAT-Seg is not imported: set model.project")
    package = sys.modules["cat_seg"]
    clip = importlib.import_module(f"{package.__name__}.utils.clip_model").CLIP
    templates = importlib.import_module(f"{package.__name__}.utils.clip_templates")
    made = base.__new__(base)
    BaseModule.__init__(made)  # the class's own would download
    statistics = {
        "pixel_mean": (123.675, 116.280, 103.530),
        "pixel_std": (58.395, 57.120, 57.375),
        "clip_pixel_mean": (122.7709383, 116.7460125, 104.09373615),
        "clip_pixel_std": (68.5005327, 66.6321579, 70.3231630),
    }
    for key, value in statistics.items():
        made.register_buffer(key, torch.tensor(options.get(key, value)).view(1, -1, 1, 1), False)
    made.clip_resolution = (384, 384) if name == "ViT-B/16" else (336, 336)
    made.clip_img_feat_size = list(options.get("clip_img_feat_size", (24, 24)))
    chosen = {"imagenet": "IMAGENET_TEMPLATES", "imagenet_select": "IMAGENET_TEMPLATES_SELECT"}
    kind = options.get("prompt_ensemble_type", "imagenet")
    if kind not in chosen:
        raise unknown_name("prompt_ensemble_type", kind, chosen)
    made.prompt_templates = getattr(templates, chosen[kind])
    made.tokenizer = None
    made.feature_extractor = MODELS.build(options["feature_extractor"])
    made.clip_model = clip(*(clip_shape or CLIP_SHAPES[name])).float()
    return made


def set_words(backbone: Any, words: Sequence[str]) -> None:
    """Lets the model look for these classes; ", " in one separates synonyms, as in CAT-Seg's class files."""
    device = backbone.pixel_mean.device
    texts = backbone.class_embeddings(list(words), backbone.prompt_templates, backbone.clip_model, device)
    texts = texts.permute(1, 0, 2).float()
    backbone.register_buffer("text_features", texts, False)
    backbone.register_buffer("text_features_test", texts, False)
