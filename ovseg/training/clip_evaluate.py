"""Quick figures during training: caption retrieval, and mIoU of three readings of the last block."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from ovseg.scenes import SceneSet
from ovseg.training.clip_pretrain import normalise, open_image, open_text, resize_positions

TEMPLATES = ("{}", "a photo of a {}.", "itap of a {}.", "a {} in the scene.")


@torch.no_grad()
def class_embeddings(model: CLIP, tokenizer: SimpleTokenizer, names: tuple[str, ...]) -> Tensor:
    """(K, D) unit embeddings, each the mean over `TEMPLATES`."""
    rows = [F.normalize(open_text(model, tokenizer([t.format(n) for n in names])), dim=-1) for t in TEMPLATES]
    return F.normalize(torch.stack(rows).mean(0), dim=-1)


@torch.no_grad()
def dense_tokens(model: CLIP, images: Tensor) -> tuple[Tensor, Tensor]:
    """Patch features of the plain last block, and of MaskCLIP's (values instead of attention).

    Args:
        model: open_clip's CLIP.
        images: (B, 3, H, W) normalised.

    Returns:
        Two (B, N, D), not normalised.
    """
    tower = model.visual
    x = tower.conv1(images)
    grid_hw = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_embedding.expand(len(x), 1, -1), x], 1)
    x = tower.ln_pre(x + resize_positions(tower.positional_embedding, grid_hw))
    *blocks, last = tower.transformer.resblocks
    for block in blocks:
        x = block(x)
    plain = last(x)
    values = F.linear(last.ln_1(x), last.attn.in_proj_weight, last.attn.in_proj_bias).chunk(3, -1)[2]
    masked = x + last.attn.out_proj(values)
    masked = masked + last.mlp(last.ln_2(masked))
    return tuple(tower.ln_post(t[:, 1:]) @ tower.proj for t in (plain, masked))


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """(K,) IoU of each class, NaN where it does not occur, from a (K, K) count of truth x prediction."""
    hit = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hit
    return np.where(confusion.sum(1) > 0, hit / np.maximum(union, 1), np.nan)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean IoU over the classes that occur."""
    return float(np.nanmean(class_iou(confusion)))


@torch.no_grad()
def evaluate(
    model: CLIP,
    tokenizer: SimpleTokenizer,
    *,
    split: str,
    seed: int = 0,
    length: int = 64,
    size_hw: tuple[int, int] = (224, 288),
) -> dict[str, float]:
    """Figures on scenes.

    Args:
        model: open_clip's CLIP.
        tokenizer: its tokenizer.
        split: which scenes; "val" while anything is still being chosen.
        seed: which scenes of the split.
        length: how many.
        size_hw: their size in px, multiples of the patch size.

    Returns:
        mIoU of "clip", "maskclip" and "value_path"; pixel accuracy of the last, and its mIoU over
        objects and shapes alone; caption "r1" among the split's scenes.
    """
    model.eval()
    scenes = SceneSet(split, seed, length=length, size_hw=size_hw)
    bank = class_embeddings(model, tokenizer, scenes.classes)
    kinds = ("clip", "maskclip", "value_path")
    confusion = {kind: np.zeros((len(bank), len(bank)), np.int64) for kind in kinds}
    images, captions = [], []
    patch = model.visual.conv1.kernel_size[0]
    grid_hw = (size_hw[0] // patch, size_hw[1] // patch)
    for scene in (scenes[k] for k in range(length)):
        batch = normalise(torch.from_numpy(scene.image).permute(2, 0, 1)[None])
        image, values = open_image(model, batch)
        images.append(F.normalize(image, dim=-1))
        captions.append(scene.caption)
        for kind, tokens in zip(kinds, (*dense_tokens(model, batch), values), strict=True):
            cosine = (F.normalize(tokens, dim=-1) @ bank.T).transpose(1, 2).unflatten(2, grid_hw)
            cosine = F.interpolate(cosine, size=size_hw, mode="bilinear", align_corners=False)
            guess = cosine[0].argmax(0).numpy()
            pairs = scene.labels.astype(np.int64) * len(bank) + guess
            confusion[kind] += np.bincount(pairs.ravel(), minlength=len(bank) ** 2).reshape(len(bank), -1)
    similarity = torch.cat(images) @ F.normalize(open_text(model, tokenizer(captions)), dim=-1).T
    model.train()
    figures = {kind: round(mean_iou(confusion[kind]), 4) for kind in kinds}
    right = confusion["value_path"]
    figures["value_path_accuracy"] = round(float(np.diag(right).sum() / right.sum()), 4)
    things = len(bank) - len(scenes.background_classes)
    iou = class_iou(right)[:things]
    figures["value_path_objects"] = round(float(np.nanmean(iou)) if np.isfinite(iou).any() else 0.0, 4)
    figures["r1"] = round(float((similarity.argmax(1) == torch.arange(length)).float().mean()), 4)
    return figures
