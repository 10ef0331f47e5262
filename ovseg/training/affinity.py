"""The affinity ViT: patches of one thing get like features, patches of different things unlike ones.

Supervised by the generator's masks. It takes DINO's place in the bundled family and has its form, but it is
not DINO: DINO has seen photographs and no masks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ovseg.encoders.dino import IMAGENET_MEAN, IMAGENET_STD
from ovseg.encoders.positions import PositionRule
from ovseg.encoders.towers import TimmTrunk
from ovseg.training.affinity_evaluate import evaluate_guide
from ovseg.training.clip_batches import Batch, SceneBatches
from ovseg.training.run import TrainingRun, export_run, scene_settings, stage_of

#: Position embeddings on other grids than the trained one, in training and after.
POSITIONS = PositionRule("size")
KIND = "affinity ViT (not DINO): timm.models.vision_transformer.VisionTransformer"
TRAINED_ON = "ovseg.scenes, split train, with its masks"


def readings(trunk: VisionTransformer, images: Tensor) -> dict[str, Tensor]:
    """All that methods read of a guide's last block, from one pass.

    Args:
        trunk: a plain ViT.
        images: (B, 3, H, W) RGB in [0, 1].

    Returns:
        "tokens" (after the last norm), "k", "v" and "qk" (q + k), each (B, N, D) of the patches, heads
        concatenated.
    """
    tower = TimmTrunk(trunk)
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    tokens, _ = tower.embed((images - mean) / std, POSITIONS)
    for block in tower.blocks[:-1]:
        tokens = block(tokens)
    last = tower.blocks[-1]
    q, k, v = last.split(tokens)
    tokens = tokens + last.project(F.scaled_dot_product_attention(q, k, v))
    parts = {"k": k, "v": v, "qk": q + k}
    flat = {name: part.transpose(1, 2).flatten(2) for name, part in parts.items()}
    every = {"tokens": tower.finish(last.feed_forward(tokens)), **flat}
    return {name: part[:, tower.num_prefix :] for name, part in every.items()}


def patch_labels(batch: Batch, purity: float) -> tuple[Tensor, Tensor]:
    """Which region a patch shows, and a number for the region's name.

    Args:
        batch: scenes.
        purity: share that one region must cover.

    Returns:
        Two (B, N) int64: region, -1 where no region covers enough; and name, equal for equal names.
    """
    share, region = batch.share.max(1)
    codes = torch.zeros(batch.share.shape[:2], dtype=torch.long)
    for row, names in zip(codes, batch.region_names, strict=True):
        row[: len(names)] = torch.tensor([names.index(name) for name in names])
    name = codes.gather(1, region)
    return torch.where(share > purity, region, -1), name


def pair_loss(
    features: Tensor, region: Tensor, name: Tensor, *, threshold: float, sharpness: float
) -> Tensor:
    """Balanced binary cross-entropy of "same thing" over all pairs of patches of an image.

    The logit is `sharpness * (cosine - threshold)`. Pairs of one thing and pairs of two things weigh one half
    each over the batch; within, a patch weighs n ** -0.5 for a region of n patches, so that backgrounds do
    not drown objects. Two things of one name are no pair of either kind.

    Args:
        features: (B, N, D).
        region: (B, N) int64, -1 leaves a patch out.
        name: (B, N) int64.
        threshold: cosine at which "same" and "not" are equally likely.
        sharpness: logits per unit of cosine.

    Returns:
        A scalar; 0 where there is no pair.
    """
    unit = F.normalize(features, dim=-1)
    logits = sharpness * (unit @ unit.mT - threshold)
    known = region >= 0
    one_thing = region[:, :, None] == region[:, None]
    size = (one_thing & known[:, None]).sum(-1).clamp(min=1)
    weight = known * size.rsqrt()
    pair = weight[:, :, None] * weight[:, None]
    apart = ~torch.eye(region.shape[1], dtype=torch.bool)
    same = pair * (one_thing & apart)
    other = pair * (name[:, :, None] != name[:, None])
    together = (same * F.softplus(-logits)).sum() / same.sum().clamp(min=1e-6)
    separate = (other * F.softplus(logits)).sum() / other.sum().clamp(min=1e-6)
    return 0.5 * (together + separate)


def sample_patches(region: Tensor, most: int, rng: np.random.Generator) -> Tensor:
    """(B, M) patch numbers, at most `most` an image, drawn at random, those with a region first."""
    order = torch.from_numpy(rng.random(region.shape, dtype=np.float32)) + (region < 0)
    return order.argsort(1)[:, :most]


class AffinityTrainer:
    """The model, its batches and its loss; see configs/bundled/affinity.yaml."""

    def __init__(self, config: dict) -> None:
        torch.set_num_threads(config["threads"])
        torch.manual_seed(config["seed"])
        self.config = config
        self.model = VisionTransformer(**config["model"])
        self._stage = -1
        self._batches: SceneBatches

    def batch(self, step: int) -> Batch:
        """The scenes of a step."""
        config = self.config
        number, inner = stage_of(config, step)
        if number != self._stage:
            stage = config["stages"][number]
            self._stage = number
            self._batches = SceneBatches(
                seed=1000 * config["seed"] + 500 + number,  # neither the CLIP's scenes nor another stage's
                batch=stage["batch"],
                sizes_hw=[tuple(size) for size in stage["sizes_hw"]],
                patch=config["model"]["patch_size"],
                settings=scene_settings(stage["scenes"]),
            )
        return self._batches[inner]

    def loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """The weighted sum over readings, and each of them."""
        config = self.config
        batch = self.batch(step)
        region, name = patch_labels(batch, config["purity"])
        rng = np.random.default_rng([config["seed"], step])
        drawn = sample_patches(region, config["max_patches"], rng)
        region, name = region.gather(1, drawn), name.gather(1, drawn)
        total, report = torch.zeros(()), {}
        for kind, features in readings(self.model, batch.images.float() / 255).items():
            chosen = features.gather(1, drawn[..., None].expand(-1, -1, features.shape[-1]))
            term = pair_loss(
                chosen, region, name, threshold=config["threshold"], sharpness=config["sharpness"]
            )
            total = total + config["weights"][kind] * term
            report[kind] = term.item()
        return total, report

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """Figures on validation scenes."""
        assert isinstance(model, VisionTransformer)
        return evaluate_guide(lambda image: readings(model, image), length=self.config["eval_scenes"])


def start(config: dict, work_dir: Path, resume: bool) -> TrainingRun:
    """A run in a folder, new or resumed."""
    trainer = AffinityTrainer(config)
    return TrainingRun(
        config, work_dir, trainer.model, trainer.loss, evaluate=trainer.evaluate, resume=resume
    )


def export(work_dir: Path, target: Path) -> str:
    """Write a run's weights, fp16, under timm's names, and beside them a JSON that says how to read them."""
    about = {"model": f"{KIND}, arguments in {target.stem}.json", "trained_on": TRAINED_ON}
    line = export_run(work_dir, target, about=about)
    config = yaml.safe_load((work_dir / "config.yaml").read_text(encoding="utf-8"))
    rows = work_dir / "eval.jsonl"
    figures = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    described = {
        "model": KIND,
        "arguments": config["model"],
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "positions": POSITIONS.mode,
        "trained_on": TRAINED_ON,
        "seed": config["seed"],
        "validation": json.loads(figures[-1]) if figures else None,
    }
    target.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return line
