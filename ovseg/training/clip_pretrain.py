"""Training the bundled CLIP from scratch on procedural scenes, in open_clip's own class.

Five terms, all on one opened forward pass:

- *image-text*: sigmoid loss (Zhai et al., SigLIP, ICCV 2023, eq. 1) between image embeddings and the names
  and states in the batch, with the true labels: many texts are true of an image, and one of many images.
- *caption*: InfoNCE (Radford et al., CLIP, 2021) between images and full captions.
- *patch*: cross-entropy of every patch's value-path feature against the batch's names, the target being
  the share of the patch that each name covers.
- *region*: the same for features averaged over an object.
- *state*: damaged or flawless, for images, objects and patches, as a choice of two prompts.

The patch and region terms train the value path (values of the last block -> out-projection -> ln_post ->
projection) with the generator's masks. So that the value path segments better than MaskCLIP's variant is
partly by construction, and is printed with the figures.
"""

from __future__ import annotations

import gzip
import json
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from ovseg.training.clip_batches import Batch, phrase, state_phrases

# The normalisation of OpenAI's CLIP, as open_clip's default.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def bundled_config() -> dict:
    """The bundled CLIP's model config, in open_clip's form."""
    return json.loads((files("ovseg") / "bundled" / "clip.json").read_text(encoding="utf-8"))


def bundled_tokenizer() -> SimpleTokenizer:
    """open_clip's tokenizer with the shortened merge list."""
    with as_file(files("ovseg") / "bundled" / "bpe_4096.txt.gz") as path:
        return SimpleTokenizer(bpe_path=str(path), context_length=40)


def shorten_merges(source: Path, target: Path, merges: int = 4096) -> None:
    """Write the first merge lines of a BPE file (gzip), with its header line.

    Args:
        source: open_clip's `bpe_simple_vocab_16e6.txt.gz`.
        target: file to write.
        merges: how many lines to keep.
    """
    with gzip.open(source) as packed:
        lines = packed.read().decode("utf-8").split("\n")[: merges + 1]
    with target.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as stream:
        stream.write("\n".join(lines).encode("utf-8"))


def normalise(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 RGB -> the encoder's input."""
    mean = torch.tensor(MEAN).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD).view(1, 3, 1, 1) * 255
    return (images.float() - mean) / std


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention by two batched products (on CPUs faster in training than the fused kernel)."""
    batch, _, width = k.shape
    shape = (batch, -1, heads, width // heads)
    q, k, v = (t.view(shape).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-1, -2) * (width // heads) ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(batch, -1, width)


def open_image(model: CLIP, images: Tensor) -> tuple[Tensor, Tensor]:
    """Image embeddings, and the value-path feature of every patch.

    The class token's embedding is open_clip's `encode_image`; patches skip the last block's attention,
    residual and FFN, which none of the losses reads.

    Args:
        model: open_clip's CLIP with a VisionTransformer.
        images: (B, 3, H, W) normalised; H and W multiples of the patch size.

    Returns:
        (B, D) and (B, N, D), not normalised.
    """
    tower = model.visual
    x = tower.conv1(images)
    grid_hw = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], 1)
    x = tower.ln_pre(x + resize_positions(tower.positional_embedding, grid_hw))
    *blocks, last = tower.transformer.resblocks
    heads = last.attn.num_heads
    for block in blocks:
        q, k, v = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, -1)
        x = x + block.attn.out_proj(_attend(q, k, v, heads))
        x = x + block.mlp(block.ln_2(x))
    q, k, v = F.linear(last.ln_1(x), last.attn.in_proj_weight, last.attn.in_proj_bias).chunk(3, -1)
    token = x[:, :1] + last.attn.out_proj(_attend(q[:, :1], k, v, heads))
    token = token + last.mlp(last.ln_2(token))
    values = last.attn.out_proj(v[:, 1:])
    return tower.ln_post(token[:, 0]) @ tower.proj, tower.ln_post(values) @ tower.proj


def resize_positions(positions: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """(1 + side * side, C) position embeddings -> (1 + h * w, C), bicubic with antialiasing."""
    side = round((len(positions) - 1) ** 0.5)
    if tuple(grid_hw) == (side, side):
        return positions
    grid = positions[1:].T.reshape(1, -1, side, side).float()
    grid = F.interpolate(grid, size=tuple(grid_hw), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:1], grid.flatten(2)[0].T.to(positions.dtype)])


def open_text(model: CLIP, tokens: Tensor) -> Tensor:
    """(Q, L) tokens -> (Q, D): open_clip's `encode_text`, cut to the longest text (causal: same result)."""
    tokens = tokens[:, : int(tokens.argmax(-1).max()) + 1]
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    mask = model.attn_mask[:length, :length]
    for block in model.transformer.resblocks:
        attn = block.attn
        q, k, v = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
        shape = (*x.shape[:2], attn.num_heads, attn.head_dim)
        q, k, v = (t.view(shape).transpose(1, 2) for t in (q, k, v))
        weights = (q @ k.transpose(-1, -2) * attn.head_dim**-0.5 + mask).softmax(-1)
        x = x + attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln_2(x))
    x = model.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)]
    return x @ model.text_projection


class Texts:
    """The distinct texts of one step, numbered in order of first use."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def add(self, text: str) -> int:
        """The text's number."""
        return self.numbers.setdefault(text, len(self.numbers))

    def embed(self, model: CLIP, tokenizer: SimpleTokenizer) -> Tensor:
        """(Q, D), short and long texts apart: a text costs as much as the longest beside it."""
        tokens = tokenizer(list(self.numbers))
        order = tokens.argmax(-1).argsort(stable=True)
        groups = [open_text(model, tokens[part]) for part in order.tensor_split(4) if len(part)]
        return torch.cat(groups)[order.argsort()]


def step_loss(
    model: CLIP,
    tokenizer: SimpleTokenizer,
    batch: Batch,
    all_names: tuple[str, ...],
    rng: np.random.Generator,
    weights: dict[str, float],
    *,
    distractors: int = 40,
    max_states: int = 24,
    max_captions: int = 64,
    bf16: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """The training loss of one batch.

    Args:
        model: open_clip's CLIP with a logit bias.
        tokenizer: its tokenizer.
        batch: scenes and what covers each patch.
        all_names: every class of the training vocabulary, for distractors.
        rng: draws prompts, captions and distractors.
        weights: weight of each term: image, caption, patch, region, state.
        distractors: names that no image of the batch shows.
        max_states: most objects asked about their state in one step.
        max_captions: images of the batch that get a caption.
        bf16: autocast the towers; faster only where the processor has matrix units for it.

    Returns:
        The loss, and each term's value (plus "r1", caption retrieval within the batch).
    """
    present = sorted({name for names in batch.region_names for name in names})
    others = [name for name in all_names if name not in set(present)]
    extra = [others[k] for k in rng.permutation(len(others))[:distractors]]
    names = present + extra
    number = {name: k for k, name in enumerate(names)}
    texts = Texts()
    queries = torch.tensor([texts.add(phrase(name, rng)) for name in names])

    objects = [(image, region) for image, count in enumerate(batch.num_objects) for region in range(count)]
    objects = [objects[k] for k in rng.permutation(len(objects))]
    # damaged ones first, so that they are about half of those asked about
    objects.sort(key=lambda pair: batch.region_defects[pair[0]][pair[1]] is None)
    hurt = sum(batch.region_defects[i][r] is not None for i, r in objects)
    asked = objects[: min(max_states, 2 * hurt)]
    states = [
        tuple(texts.add(t) for t in state_phrases(batch.region_names[i][r], batch.region_defects[i][r], rng))
        for i, r in asked
    ]
    captions = torch.tensor([texts.add(caption) for caption in batch.captions(rng)[:max_captions]])

    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        image, patches = open_image(model, normalise(batch.images))
        text = texts.embed(model, tokenizer)
    image, patches = F.normalize(image.float(), dim=-1), F.normalize(patches.float(), dim=-1)
    text = F.normalize(text.float(), dim=-1)
    scale, bias = model.logit_scale.exp(), model.logit_bias

    region_of = torch.full(batch.share.shape[:2], -1, dtype=torch.long)
    for row, region_names in enumerate(batch.region_names):
        region_of[row, : len(region_names)] = torch.tensor([number[name] for name in region_names])
    terms: dict[str, Tensor] = {}

    # image-text
    truth = torch.zeros(len(image), len(names))
    rows, columns = torch.nonzero(region_of >= 0, as_tuple=True)
    truth[rows, region_of[rows, columns]] = 1
    logits = scale * image @ text[queries].T + bias
    terms["image"] = F.softplus(-(2 * truth - 1) * logits).sum() / len(image)

    # caption
    similarity = scale * image[: len(captions)] @ text[captions].T
    same = captions[:, None] == captions[None]
    similarity = similarity.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool), -1e4)
    target = torch.arange(len(captions))
    terms["caption"] = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2

    # patch: soft targets; patches of one background only count less, they are many and easy
    soft = torch.zeros(len(image), len(names) + 1, batch.share.shape[2])
    soft.scatter_add_(1, region_of.clamp(min=-1).remainder(len(names) + 1)[..., None].expand_as(batch.share),
                      batch.share)  # fmt: skip
    soft = soft[:, : len(names)].transpose(1, 2)
    is_object = torch.tensor(
        [[r < count for r in range(batch.share.shape[1])] for count in batch.num_objects]
    )
    foreground = (batch.share * is_object[..., None]).sum(1)
    weight = 0.25 + 0.75 * (foreground > 0.02)
    log_p = (scale * patches @ text[queries].T).log_softmax(-1)
    terms["patch"] = -((soft * log_p).sum(-1) * weight).sum() / weight.sum()

    # region: objects' mean features
    pooled = batch.share @ patches / (batch.share.sum(-1, keepdim=True) + 1e-6)
    chosen = is_object & (batch.share.sum(-1) > 0.3)
    if chosen.any():
        logits = scale * F.normalize(pooled[chosen], dim=-1) @ text[queries].T
        terms["region"] = F.cross_entropy(logits, region_of[chosen])

    # state
    if asked:
        i, r = torch.tensor(asked).T
        bad, good = torch.tensor(states).T
        axis = text[bad] - text[good]
        truth = torch.tensor([float(batch.region_defects[a][b] is not None) for a, b in asked])
        region = F.normalize(pooled[i, r], dim=-1)
        terms["state"] = F.binary_cross_entropy_with_logits(scale * (region * axis).sum(-1), truth)
        # an image only answers for a kind that it shows once
        lone = torch.tensor([batch.region_names[a].count(batch.region_names[a][b]) == 1 for a, b in asked])
        if lone.any():
            logit = scale * (image[i[lone]] * axis[lone]).sum(-1)
            terms["state"] = terms["state"] + F.binary_cross_entropy_with_logits(logit, truth[lone])
        inside = batch.share[i, r]
        logit = scale * torch.einsum("snd,sd->sn", patches[i], axis)
        broken = (batch.damage[i] > 0.06).float()
        loss = F.binary_cross_entropy_with_logits(logit, broken, reduction="none")
        mask = (inside > 0.3) * (1.0 + 2.0 * broken)
        terms["state"] = terms["state"] + (loss * mask).sum() / mask.sum().clamp(min=1)

    total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
    report = {name: float(term.detach()) for name, term in terms.items()}
    report["r1"] = float((similarity.argmax(1) == target).float().mean())
    return total, report


def build_model(config: dict, seed: int) -> CLIP:
    """open_clip's CLIP from a config dict, with seeded initial weights."""
    torch.manual_seed(seed)
    return CLIP(**config)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices decay; vectors do not; the logit scale and bias learn five times as fast."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    logits: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        group = logits if name.startswith("logit_") else matrices if parameter.ndim > 1 else vectors
        group.append(parameter)
    return [
        {"params": matrices, "weight_decay": weight_decay, "times": 1.0},
        {"params": vectors, "weight_decay": 0.0, "times": 1.0},
        {"params": logits, "weight_decay": 0.0, "times": 5.0},
    ]
