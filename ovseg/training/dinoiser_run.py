"""Runs that train what the bundled family needs for CLIP-DINOiser: FOUND's decoder, then two convolutions.

Both learn from the pictures of training scenes alone: of masks, names and captions they see nothing. The
guide that they learn from did see masks (see the model card).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from ovseg.encoders.bundled_guide import load_bundled_guide
from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.clip_loading import load_bundled
from ovseg.encoders.found import FoundEncoder, load_decoder, patches_of
from ovseg.methods.clip_dinoiser import DinoiserConvolutions, clip_dinoiser, inner_features
from ovseg.methods.maskclip import maskclip
from ovseg.metrics import IoU
from ovseg.scenes import SceneSet
from ovseg.scorer import Scorer
from ovseg.structures import TextBank
from ovseg.training.clip_evaluate import class_embeddings
from ovseg.training.dinoiser import POSITIONS, dinoiser_losses, lesson_of
from ovseg.training.found import border_seed, found_loss
from ovseg.training.run import TrainingRun, export_run, scene_settings, stage_of

BUNDLED = Path(__file__).parents[1] / "bundled"
#: How scenes are read when a method is measured: as in configs/*/*_bundled_scenes.py.
READING: dict[str, Any] = {"short_side": 224, "crop": 112, "stride": 56}


def _folder(name: str) -> Path | None:
    return None if name == "bundled" else Path(name)


class _Trainer:
    """What both trainers share: the config, the guide, the pictures of a step."""

    model: nn.Module

    def __init__(self, config: dict) -> None:
        torch.set_num_threads(config["threads"])
        torch.manual_seed(config["seed"])
        self.config = config
        self.guide = load_bundled_guide(_folder(config["guide"]))

    def images(self, step: int) -> Tensor:
        """(B, 3, H, W) RGB in [0, 1]: the pictures of new scenes for every step."""
        number, inner = stage_of(self.config, step)
        stage = self.config["stages"][number]
        seed = 1000 * self.config["seed"] + 700 + 10 * self.config["scene_series"] + number
        scenes = SceneSet("train", seed, length=1, settings=scene_settings(stage["scenes"]))
        sizes = [tuple(size) for size in stage["sizes_hw"]]
        first = inner * stage["batch"]
        places = range(first, first + stage["batch"])
        pictures = [scenes.render(place, sizes[inner % len(sizes)]).image for place in places]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255

    def loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of a step, and its terms."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Figures on validation scenes."""
        raise NotImplementedError


class FoundTrainer(_Trainer):
    """FOUND's decoder on the bundled guide; see configs/bundled/found.yaml."""

    def __init__(self, config: dict) -> None:
        super().__init__(config)
        self.found = FoundEncoder(self.guide)
        self.model = self.found.decoder

    def loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """FOUND's loss; the border takes the place of the class token's attention."""
        config = self.config
        image = self.images(step)
        block = self.found.open(image)
        seed = None
        if step < config["seed_steps"]:
            seed = border_seed(block, least_cosine=config["least_cosine"], least_share=config["least_share"])
        return found_loss(self.found, block, image, seed)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """How well objectness finds the objects' patches: IoU over all scenes, and that of the seed."""
        scenes = SceneSet("val", 0, length=self.config["eval_scenes"], size_hw=(224, 288))
        patch = self.guide.patch_hw[0]
        rows = {"object_iou": [0, 0], "seed_iou": [0, 0]}
        for scene in (scenes[index] for index in range(len(scenes))):
            image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 255
            block = self.found.open(image)
            share = (torch.from_numpy(scene.instances) > 0).float().unflatten(0, (-1, patch))
            truth = share.unflatten(-1, (-1, patch)).mean(dim=(1, 3)) > 0.5
            guesses = (self.found.decode(block)[0, 0] > 0, ~border_seed(block)[0])
            for row, guess in zip(rows.values(), guesses, strict=True):
                row[0] += int((guess & truth).sum())
                row[1] += int((guess | truth).sum())
        return {name: both / max(either, 1) for name, (both, either) in rows.items()}


class DinoiserTrainer(_Trainer):
    """The two convolutions for the bundled CLIP; see configs/bundled/dinoiser.yaml."""

    def __init__(self, config: dict) -> None:
        super().__init__(config)
        clip = load_bundled(_folder(config["clip"]))
        self.clip = clip
        self.encoder = ClipEncoder(clip.model.visual, mean=clip.mean, std=clip.std).eval()
        decoder = BUNDLED / "found.safetensors" if config["found"] == "bundled" else Path(config["found"])
        self.found = FoundEncoder(self.guide, load_decoder(decoder)).eval().requires_grad_(False)
        visual: Any = self.encoder.visual
        self.convolutions = DinoiserConvolutions(visual.conv1.out_channels, config["hidden"])
        self.model = self.convolutions
        self._plain: dict[str, float] = {}

    def loss(self, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """The sum of the two losses."""
        config = self.config
        tap = config["tap"]
        image = self.images(step)
        with torch.no_grad():
            inner = inner_features(self.encoder.open(image, positions=POSITIONS, ffn_taps=[tap]), tap)
            block = self.found.open(image)  # FOUND and the correlations ask the same ViT: one pass for both
            values, objectness = patches_of(block.v, block), self.found.decode(block)
        lesson = lesson_of(inner, values, objectness, threshold=config["threshold"])
        pairs, patches = dinoiser_losses(self.convolutions, lesson)
        return pairs + patches, {"pairs": pairs.item(), "patches": patches.item()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """MIoU before and after pooling: MaskCLIP's (which does not change), and of the value path alone."""
        assert isinstance(model, DinoiserConvolutions)
        figures: dict[str, float] = {}
        for name, residual in (("maskclip", True), ("value_path", False)):
            if name not in self._plain:
                self._plain[name] = self.measure(maskclip(self.encoder, residual=residual, **READING))
            options: dict[str, Any] = {"threshold": self.config["eval_threshold"], "residual": residual}
            pooled = clip_dinoiser(self.encoder, model, tap=self.config["tap"], **READING, **options)
            figures |= {name: self._plain[name], f"{name}_pooled": self.measure(pooled)}
        return figures

    def measure(self, scorer: Scorer, *, split: str = "val", seed: int = 0) -> float:
        """MIoU on scenes, four prompt templates."""
        scenes = SceneSet(split, seed, length=self.config["eval_scenes"], size_hw=(224, 288))
        model: Any = self.clip.model
        words = class_embeddings(model, self.clip.tokenizer, scenes.classes)
        bank = TextBank(words, torch.arange(len(words)), scenes.classes)
        iou = IoU(len(scenes.classes))
        for scene in (scenes[index] for index in range(len(scenes))):
            labels, _ = scorer(scorer.prepare([scene.image]), bank, scene.labels.shape).labels()
            iou.update(labels[0].numpy(), scene.labels)
        return iou.report().mean_iou


def start(config: dict, work_dir: Path, resume: bool) -> TrainingRun:
    """A run in a folder, new or resumed."""
    trainer = {"found": FoundTrainer, "convolutions": DinoiserTrainer}[config["train"]](config)
    parts = trainer.model, trainer.loss
    return TrainingRun(config, work_dir, *parts, evaluate=trainer.evaluate, resume=resume)


def export(work_dir: Path, target: Path) -> str:
    """Write a run's weights, fp16, under the official names."""
    config = yaml.safe_load((Path(work_dir) / "config.yaml").read_text(encoding="utf-8"))
    trained_on = "ovseg.scenes, split train, pictures only"
    if config["train"] == "found":
        about = {"model": "FOUND decoder on the keys of affinity.safetensors", "trained_on": trained_on}
        return export_run(work_dir, target, about=about, rename=lambda name: f"decoder.{name}")
    about = {"model": "CLIP-DINOiser convolutions for clip.safetensors", "trained_on": trained_on}
    return export_run(work_dir, target, about=about)
