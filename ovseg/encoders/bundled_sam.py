"""The bundled SAM: segment_anything's own classes, at about a seventieth of SAM-B's size."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from ovseg.encoders.checkpoints import load_into, load_state_dict, read_json
from ovseg.errors import CheckpointError

CONFIG, WEIGHTS = "sam.json", "sam.safetensors"
_PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")


def build_sam(config: Mapping[str, Any]) -> Sam:
    """A SAM with random weights, of any size.

    What the parts share is said once: the image encoder's output width, grid and input side are those of
    the prompt encoder and the mask decoder. Layer norms have an eps of 1e-6, pixels the statistics of SAM.

    Args:
        config: "image_encoder" (arguments of `ImageEncoderViT`), "prompt_encoder" (`mask_in_chans`) and
            "mask_decoder" (arguments of `MaskDecoder`, with "transformer": those of `TwoWayTransformer`);
            other entries say where weights come from and are not read.

    Raises:
        CheckpointError: the config lacks a part.
    """
    lacking = [part for part in _PARTS if not isinstance(config.get(part), Mapping)]
    if lacking:
        raise CheckpointError(f"the SAM config has no {', '.join(lacking)}: expected {', '.join(_PARTS)}")
    encoder = ImageEncoderViT(**config["image_encoder"], norm_layer=partial(nn.LayerNorm, eps=1e-6))
    side, width = encoder.img_size, config["image_encoder"]["out_chans"]
    grid = side // config["image_encoder"]["patch_size"]
    decoder = dict(config["mask_decoder"])
    transformer = TwoWayTransformer(embedding_dim=width, **decoder.pop("transformer"))
    return Sam(
        encoder,
        PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(side, side),
            **config["prompt_encoder"],
        ),
        MaskDecoder(transformer_dim=width, transformer=transformer, **decoder),
    )


def load_bundled_sam(folder: Path | None = None) -> Sam:
    """The small SAM of the package, in eval mode, float32, without gradients, on the CPU.

    Its input side is 224 px and its patch 8 px (`ovseg/bundled/MODEL_CARD.md`); it takes prompts as SAM does.

    Args:
        folder: another folder with `sam.json` and `sam.safetensors`; None is the package's own.

    Raises:
        CheckpointError: files are missing or damaged, or do not fit each other.
    """
    folder = folder or Path(str(files("ovseg") / "bundled"))
    config = read_json(folder / CONFIG)
    try:
        sam = build_sam(config)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG} describes no SAM: {error}") from error
    weights = folder / WEIGHTS
    load_into(sam, load_state_dict(weights), source=str(weights), architecture="the bundled SAM")
    return sam.eval().requires_grad_(False)
