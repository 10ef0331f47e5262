"""Finds and loads golden cases: what the authors' own code computed on small random-weight models."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import open_clip
import timm.models.vision_transformer
import torch
from safetensors.torch import load_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.sam import SamEncoder
from ovseg.score_map import ScoreMap
from ovseg.structures import Pictures, TextBank

ROOT = Path(os.environ.get("OVSEG_GOLDEN_DIR", Path(__file__).parent / "golden"))

#: Statistics of the published pipelines, on 0-255 (slightly rounded against CLIP's own).
MEAN_255 = (122.771, 116.746, 104.094)
STD_255 = (68.501, 66.632, 70.323)


@dataclass(frozen=True)
class Case:
    """One case folder: arrays, settings, weights."""

    folder: Path

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "case.npz", allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    @cached_property
    def settings(self) -> dict:
        return json.loads(self.arrays["settings"].item())

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.folder / "weights.safetensors")

    @property
    def bank(self) -> TextBank:
        """The case's text rows; class 0 is the background of the published post-processing."""
        text = self["text"]
        classes = self["query_idx"] if "query_idx" in self.arrays else torch.arange(len(text))
        names = tuple(f"class{i}" for i in range(int(classes.max()) + 1))
        return TextBank(text, classes, names, background=frozenset({0}))

    def clip_encoder(self, *, quick_gelu: bool, rounded_statistics: bool | None = None) -> ClipEncoder:
        """The case's CLIP tower: open_clip's own class, weights loaded strictly."""
        prefix = "clip.visual."
        state = {
            name[len(prefix) :]: value for name, value in self.weights.items() if name.startswith(prefix)
        }
        width = state["conv1.weight"].shape[0]
        patch = state["conv1.weight"].shape[-1]
        cells = round((state["positional_embedding"].shape[0] - 1) ** 0.5)
        visual = open_clip.transformer.VisionTransformer(
            image_size=cells * patch,
            patch_size=patch,
            width=width,
            layers=1 + max(int(name.split(".")[2]) for name in state if "resblocks" in name),
            heads=4,
            mlp_ratio=state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0] / width,
            output_dim=state["proj"].shape[1],
            act_layer=open_clip.transformer.QuickGELU if quick_gelu else nn.GELU,
        )
        visual.load_state_dict(state, strict=True)
        if quick_gelu if rounded_statistics is None else rounded_statistics:
            mean, std = [m / 255 for m in MEAN_255], [s / 255 for s in STD_255]
            return ClipEncoder(visual, mean=mean, std=std).eval()
        return ClipEncoder(visual).eval()

    def dino_encoder(self, *, patch: int, heads: int = 3, kind: str = "tokens") -> DinoEncoder:
        """The case's DINO tower in timm's own class, weights loaded strictly."""
        state = {name[5:]: value for name, value in self.weights.items() if name.startswith("dino.")}
        trunk = timm.models.vision_transformer.VisionTransformer(
            img_size=round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch,
            patch_size=patch,
            embed_dim=state["pos_embed"].shape[2],
            depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
            num_heads=heads,
            num_classes=0,
        )
        trunk.load_state_dict(state, strict=True)
        return DinoEncoder(trunk, kind=kind).eval()

    def sam_encoder(self) -> SamEncoder:
        """The case's SAM in segment_anything's own classes, weights loaded strictly."""
        state = {name[4:]: value for name, value in self.weights.items() if name.startswith("sam.")}
        cells, _, width = state["image_encoder.pos_embed"].shape[1:]
        patch = state["image_encoder.patch_embed.proj.weight"].shape[-1]
        channels = state["image_encoder.neck.0.weight"].shape[0]
        spans = {  # window side by block; the whole grid where attention is global
            int(name.split(".")[2]): (len(value) + 1) // 2
            for name, value in state.items()
            if name.endswith("attn.rel_pos_h")
        }
        sam = Sam(
            ImageEncoderViT(
                img_size=cells * patch,
                patch_size=patch,
                embed_dim=width,
                depth=len(spans),
                num_heads=width // state["image_encoder.blocks.0.attn.rel_pos_h"].shape[1],
                mlp_ratio=state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / width,
                out_chans=channels,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                window_size=min(spans.values()),
                global_attn_indexes=tuple(block for block, span in spans.items() if span == cells),
            ),
            PromptEncoder(
                embed_dim=channels,
                image_embedding_size=(cells, cells),
                input_image_size=(cells * patch, cells * patch),
                mask_in_chans=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
            ),
            MaskDecoder(
                num_multimask_outputs=3,
                transformer=TwoWayTransformer(
                    depth=2,
                    embedding_dim=channels,
                    mlp_dim=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
                    num_heads=4,
                ),
                transformer_dim=channels,
                iou_head_depth=3,
                iou_head_hidden_dim=state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
            ),
            [123.675, 116.28, 103.53],
            [58.395, 57.12, 57.375],
        )
        sam.load_state_dict(state, strict=True)
        return SamEncoder(sam).eval()

    @property
    def rgb(self) -> Tensor:
        """The resized image `(1, 3, h, w)` in [0, 1]."""
        if "resized_uint8_chw_bgr" in self.arrays:
            return self["resized_uint8_chw_bgr"].flip(0)[None].float() / 255
        return self["resized_uint8_hwc_rgb"].permute(2, 0, 1)[None].float() / 255

    @property
    def pictures(self) -> Pictures:
        """The resized image with the original, and its region ids where the case has some."""
        regions = (self.arrays["instance_mask"],) if "instance_mask" in self.arrays else ()
        return Pictures(self.rgb, (self.arrays["image"],), regions)


def cases(method: str) -> list:
    """Pytest parameters for every case folder of a method, under `OVSEG_GOLDEN_DIR` or tests/golden."""
    import pytest

    folders = sorted(path.parent for path in (ROOT / method).glob("**/case.npz"))
    return [pytest.param(Case(folder), id=folder.name) for folder in folders]


def query_cosines(score_map: ScoreMap, size_hw: tuple[int, int]) -> Tensor:
    """Full-size cosine maps `(Q, H, W)` of the first image."""
    return score_map.pictures(0, score_map.cosine[0], size_hw)


def class_scores(score_map: ScoreMap, size_hw: tuple[int, int]) -> Tensor:
    """Full-size class probabilities `(K, H, W)` of the first image, put together from tiles."""
    full = torch.empty(len(score_map.bank.names), *size_hw)
    for ys, xs, piece in score_map.tiles(0, size_hw):
        full[:, ys, xs] = piece
    return full


def differing(ours: np.ndarray | Tensor, theirs: Tensor) -> float:
    """Share of differing pixels."""
    return float((torch.as_tensor(np.asarray(ours).astype(np.int64)) != theirs.long()).float().mean())
