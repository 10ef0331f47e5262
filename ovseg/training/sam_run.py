"""A training run of the bundled SAM, and its export."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from ovseg.encoders.bundled_sam import CONFIG, build_sam
from ovseg.encoders.checkpoints import read_json
from ovseg.training.run import TrainingRun, export_run, scene_settings, stage_of
from ovseg.training.sam_batches import SamBatches
from ovseg.training.sam_evaluate import evaluate
from ovseg.training.sam_pretrain import step_loss


class SamTrainer:
    """The model of a run, and its loss at every step.

    Args:
        config: of the run (`configs/bundled/sam.yaml`); "model" is "bundled" or the path of a SAM config.
    """

    def __init__(self, config: dict) -> None:
        torch.manual_seed(config["seed"])
        torch.set_num_threads(config["threads"])
        self.config = config
        self.model = build_sam(read_json(_model_file(config)))
        encoder = self.model.image_encoder
        self.batches = [
            SamBatches(
                seed=config["seed"] + number,
                batch=stage["batch"],
                segments=stage["segments"],
                sizes_hw=[(height, width) for height, width in stage["sizes_hw"]],
                side=encoder.img_size,
                patch=encoder.patch_embed.proj.kernel_size[0],
                settings=scene_settings(stage["scenes"]),
            )
            for number, stage in enumerate(config["stages"])
        ]

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss and terms of a step of the run."""
        number, inner = stage_of(self.config, step)
        return step_loss(self.model, self.batches[number][inner], self.config["weights"])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean IoU on validation scenes, and on glyphs that training never shows."""
        seen = evaluate(model, "val", scenes=self.config["eval_scenes"])
        unseen = evaluate(model, "unseen", scenes=self.config["eval_scenes"], seed=1)
        return seen | {f"unseen_{name}": unseen[name] for name in ("box", "point", "ground")}


def _model_file(config: dict) -> Path:
    bundled = Path(str(files("ovseg") / "bundled")) / CONFIG
    return bundled if config["model"] == "bundled" else Path(config["model"])


def start(config: dict, work_dir: Path, resume: bool) -> TrainingRun:
    """A run in a folder, for `ovseg.training.run.command_line`."""
    trainer = SamTrainer(config)
    return TrainingRun(
        config, work_dir, trainer.model, trainer.loss, evaluate=trainer.evaluate, resume=resume
    )


def export(work_dir: Path, target: Path) -> str:
    """Write a run's weights as fp16 safetensors that load strictly into segment_anything's Sam."""
    config = read_json(_model_file({"model": "bundled"}))
    about = {
        "model": "segment_anything.modeling.Sam, arguments in sam.json",
        "arguments": json.dumps(config),
        "trained_on": "ovseg.scenes, split train",
    }
    return export_run(work_dir, target, about=about)
