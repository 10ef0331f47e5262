"""Training the bundled SAM from scratch on procedural scenes, in segment_anything's own classes.

The losses are those of SAM (Kirillov et al., Segment Anything, ICCV 2023, appendix A): focal and dice loss on
masks, mean squared error on the predicted IoU.

*Deviations*

- The single-mask output answers every prompt, and so do the three of the multi-mask output, of which the
  best counts (SAM: one or the other, by the number of prompts). A tenth of the mean over the three keeps
  outputs that never win from dying.
- Dice + 5 focal instead of dice + 20 focal; at a quarter of the image's pixels, as SAM's low-res logits are.
- Mask prompts are coarse truths, not the model's own previous masks: one pass instead of eleven.
- A term asks the last block's attention to spread evenly over a patch's region. It teaches grouping long
  before the masks do, and Trident reads that attention. In SAM nothing but the masks trains it, here the
  generator's regions do: say so beside figures that use it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import (
    Attention,
    Block,
    get_rel_pos,
    window_partition,
    window_unpartition,
)
from torch import Tensor

from ovseg.training.sam_batches import Prompts, SamBatch

# Patches less pure than this are not asked where they look.
PURE = 0.7


def preprocess(sam: Sam, images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 RGB -> normalised, then padded right and below with zeros to SAM's square."""
    side = sam.image_encoder.img_size
    x = (images.float() - sam.pixel_mean) / sam.pixel_std
    return F.pad(x, (0, side - x.shape[-1], 0, side - x.shape[-2]))


def _attend(attn: Attention, x: Tensor) -> tuple[Tensor, Tensor]:
    """SAM's attention, faster in training: relative positions as more channels of queries and keys.

    q . (k + position of k - position of q) is one product of (q, its row terms, its column terms) with
    (k, row of k as one-hot, column of k as one-hot): nothing is added to the large matrix.

    Args:
        attn: of a block, with relative positions.
        x: (B, h, w, C).

    Returns:
        The result (B, h, w, C) and the weights (B, heads, h * w, h * w).
    """
    batch, height, width, _ = x.shape
    count, heads = height * width, attn.num_heads
    qkv = attn.qkv(x).reshape(batch, count, 3, heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.flatten(1, 2).unbind(0)
    grid = q.unflatten(1, (height, width))
    rows = torch.einsum("nhwc,hkc->nhwk", grid, get_rel_pos(height, height, attn.rel_pos_h)).flatten(1, 2)
    columns = torch.einsum("nhwc,wkc->nhwk", grid, get_rel_pos(width, width, attn.rel_pos_w)).flatten(1, 2)
    row = torch.eye(height, device=x.device).repeat_interleave(width, 0).expand(len(k), -1, -1)
    column = torch.eye(width, device=x.device).repeat(height, 1).expand(len(k), -1, -1)
    query, key = torch.cat([q * attn.scale, rows, columns], -1), torch.cat([k, row, column], -1)
    weights = (query @ key.transpose(1, 2)).softmax(-1)
    out = (weights @ v).unflatten(0, (batch, heads)).transpose(1, 2).reshape(batch, height, width, -1)
    return attn.proj(out), weights.unflatten(0, (batch, heads))


def _step(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """One block of the image encoder: (B, h, w, C) -> the same, and its attention (windows apart)."""
    size = block.window_size
    inner = block.norm1(x)
    padded_hw = x.shape[1:3]
    if size:
        inner, padded_hw = window_partition(inner, size)
    inner, weights = _attend(block.attn, inner)
    if size:
        inner = window_unpartition(inner, size, padded_hw, x.shape[1:3])
    x = x + inner
    return x + block.mlp(block.norm2(x)), weights


def open_encoder(sam: Sam, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The image embedding, and the attention of the last (global) block.

    Args:
        sam: with relative positions, the last block global.
        pixels: (B, 3, side, side), as `preprocess` gives.

    Returns:
        (B, C, g, g), equal to `sam.image_encoder(pixels)`; and (B, heads, g * g, g * g), rows sum to 1.
    """
    encoder = sam.image_encoder
    x = encoder.patch_embed(pixels)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for block in encoder.blocks:
        x, weights = _step(block, x)
    return encoder.neck(x.permute(0, 3, 1, 2)), weights


def decode(sam: Sam, embedding: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """All mask outputs of one image: the single-mask one, then those of the multi-mask output.

    Args:
        sam: the model.
        embedding: (1, C, g, g).
        prompts: K of them.

    Returns:
        (K, 1 + M, 4g, 4g) logits and (K, 1 + M) predicted IoU.
    """
    sparse, dense = sam.prompt_encoder(prompts.points, prompts.boxes, prompts.masks)
    return sam.mask_decoder.predict_masks(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense)


def mask_losses(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Focal loss (gamma 2, alpha .25; Lin et al., ICCV 2017) and dice loss of every mask.

    Args:
        logits: (K, M, h, w).
        truth: (K, h, w) in [0, 1]; cells that a border crosses are in between.

    Returns:
        (K, M) and (K, M).
    """
    target = truth[:, None].expand_as(logits)
    inside = logits.sigmoid()
    wrong = inside + target - 2 * inside * target
    weight = 0.75 - 0.5 * target
    cross = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = (weight * wrong.square() * cross).mean((-2, -1))
    both = (inside * target).sum((-2, -1))
    dice = 1 - (2 * both + 1) / (inside.sum((-2, -1)) + target.sum((-2, -1)) + 1)
    return focal, dice


def measured_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """(K, M) IoU of the masks logits > 0 with truth >= .5; (K, M, h, w) and (K, h, w) in."""
    found, wanted = logits > 0, (truth >= 0.5)[:, None]
    union = (found | wanted).sum((-2, -1))
    return (found & wanted).sum((-2, -1)) / union.clamp(min=1)


def attention_loss(weights: Tensor, share: Tensor) -> Tensor:
    """How far attention (mean over heads) is from an even look at a patch's own region: KL divergence.

    The mass on the region alone would be a poor target: a patch that looks at itself only reaches it.

    Args:
        weights: (B, heads, N, N), rows sum to 1.
        share: (B, R, N), how much of a patch each region covers; 0 on padding.

    Returns:
        KL(even on the region, attention) in nats, mean over pure patches; 0 if there are none.
    """
    even = share / share.sum(2, keepdim=True).clamp(min=1e-6)
    looked = weights.mean(1).clamp(min=1e-8).log() @ even.transpose(1, 2)
    entropy = -(even * even.clamp(min=1e-8).log()).sum(2)
    purity, region = share.max(1)
    divergence = -looked.gather(2, region[..., None])[..., 0] - entropy.gather(1, region)
    pure = purity > PURE
    return (divergence * pure).sum() / pure.sum().clamp(min=1)


def step_loss(sam: Sam, batch: SamBatch, weights: dict[str, float]) -> tuple[Tensor, dict[str, float]]:
    """The training loss of one batch.

    Args:
        sam: the model.
        batch: images, segments and prompts.
        weights: weight of each term: focal, dice, spare (mean over the multi-mask outputs), iou, attention.

    Returns:
        The loss, and each term's value (plus "measured", the single output's mean IoU at low resolution).
    """
    embedding, attention = open_encoder(sam, preprocess(sam, batch.images))
    answers = [decode(sam, embedding[k : k + 1], prompts) for k, prompts in enumerate(batch.prompts)]
    scale = sam.image_encoder.img_size // answers[0][0].shape[-1]
    height, width = (side // scale for side in batch.images.shape[-2:])
    logits = torch.cat([masks for masks, _ in answers])[..., :height, :width]
    predicted = torch.cat([iou for _, iou in answers])
    truth = F.avg_pool2d(batch.truths.flatten(0, 1)[:, None].float(), scale)[:, 0]

    focal, dice = mask_losses(logits, truth)
    each = weights["focal"] * focal + weights["dice"] * dice
    with torch.no_grad():
        iou = measured_iou(logits, truth)
    terms = {
        "single": each[:, 0].mean(),
        "best": each[:, 1:].min(1).values.mean(),
        "spare": each[:, 1:].mean(),
        "iou": F.mse_loss(predicted, iou),
        "attention": attention_loss(attention, batch.share),
    }
    loss = terms["single"] + terms["best"] + sum(weights[k] * terms[k] for k in ("spare", "iou", "attention"))
    report = {name: float(value.detach()) for name, value in terms.items()}
    return loss, report | {"measured": float(iou[:, 0].mean())}
