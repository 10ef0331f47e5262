"""A resumable training run of the bundled CLIP: stages, processes, checkpoints, logs, export."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
from torch import Tensor

from ovseg.errors import CheckpointError, ConfigError
from ovseg.training.clip_batches import SceneBatches
from ovseg.training.clip_evaluate import evaluate
from ovseg.training.clip_pretrain import (
    build_model,
    bundled_config,
    bundled_tokenizer,
    parameter_groups,
    step_loss,
)
from ovseg.training.run import (
    claim_folder,
    export_run,
    learning_rate,
    save_checkpoint,
    scene_settings,
    stage_of,
    total_steps,
)


def _load_model_config(config: dict) -> dict:
    if config["model"] == "bundled":
        return bundled_config()
    return json.loads(Path(config["model"]).read_text(encoding="utf-8"))


class _Part:
    """One process's share of a step: its batches, its loss, its gradients."""

    def __init__(self, config: dict, rank: int) -> None:
        torch.set_num_threads(1 if config["processes"] > 1 else torch.get_num_threads())
        self.config, self.rank = config, rank
        model_config = _load_model_config(config)
        self.patch = model_config["vision_cfg"]["patch_size"]
        self.model = build_model(model_config, config["seed"])
        self.tokenizer = bundled_tokenizer()
        self.parameters = list(self.model.parameters())
        self._stage = -1
        self._batches: SceneBatches

    def gradients(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """All gradients as one vector, and the loss terms."""
        config, processes = self.config, self.config["processes"]
        number, inner = stage_of(config, step)
        stage = config["stages"][number]
        if number != self._stage:
            self._stage = number
            self._batches = SceneBatches(
                seed=1000 * config["seed"] + number,  # new scenes for every stage
                batch=stage["batch"] // processes,
                sizes_hw=[tuple(size) for size in stage["sizes_hw"] for _ in range(processes)],
                patch=self.patch,
                settings=scene_settings(stage["scenes"]),
            )
        batch = self._batches[inner * processes + self.rank]
        rng = np.random.default_rng([config["seed"], step, self.rank])
        for parameter in self.parameters:
            parameter.grad = None
        loss, report = step_loss(
            self.model, self.tokenizer, batch, self._batches.scenes.classes, rng, config["weights"],
            max_captions=64 // processes, max_states=24 // processes, bf16=config["bf16"],
        )  # fmt: skip
        loss.backward()
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        return torch.cat([g.reshape(-1) for g in grads]), report

    def weights(self) -> Tensor:
        """All weights as one vector."""
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def take(self, vector: Tensor, gradients: bool) -> None:
        """Unpack a vector into the weights or the gradients."""
        start = 0
        for parameter in self.parameters:
            piece = vector[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
            if gradients:
                parameter.grad = piece.clone()
            else:
                parameter.detach().copy_(piece)


def _helper(config: dict, rank: int, shared: dict, first: int, last: int, parent: int) -> None:
    """A further process: waits for weights, writes gradients; ends with its parent."""
    part = _Part(config, rank)
    for step in range(first, last):
        while shared["step"].item() < step:
            if os.getppid() != parent:
                return
            time.sleep(0.002)
        part.take(shared["weights"], gradients=False)
        vector, report = part.gradients(step)
        shared["gradients"][rank - 1].copy_(vector)
        shared["report"][rank - 1].copy_(torch.tensor([report.get(k, 0.0) for k in _TERMS]))
        shared["done"][rank - 1] = step


_TERMS = ("image", "caption", "patch", "region", "state", "r1")


class ClipRun:
    """A run in a folder.

    Args:
        config: as configs/bundled/clip.yaml.
        work_dir: made if absent.
        resume: continue from its checkpoint (from the start if there is none).

    Raises:
        ConfigError: the folder holds another run and `resume` is False.
    """

    def __init__(self, config: dict, work_dir: Path, *, resume: bool = False) -> None:
        self.config, self.work_dir = config, Path(work_dir)
        for stage in config["stages"]:
            if stage["batch"] % config["processes"]:
                raise ConfigError(
                    f"stage '{stage['name']}': batch {stage['batch']} does not divide into "
                    f"{config['processes']} processes"
                )
        self.checkpoint = claim_folder(self.work_dir, config, resume=resume)
        self.part = _Part(config, 0)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.part.model, config["weight_decay"]), betas=tuple(config["betas"])
        )
        self.step, self.seconds = 0, 0.0
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            self.part.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    @property
    def total(self) -> int:
        """Steps of the whole run."""
        return total_steps(self.config)

    def save(self) -> None:
        """Write the checkpoint next to the old one, then replace it."""
        state = {
            "model": self.part.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        save_checkpoint(state, self.checkpoint)

    def _log(self, name: str, row: dict) -> None:
        """Add a line; lines of steps after the checkpoint are rewritten by a resumed run, same values."""
        with (self.work_dir / name).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    def train(self, *, stop_after: int | None = None) -> None:
        """Run to the end, or for `stop_after` steps."""
        config, part = self.config, self.part
        last = self.total if stop_after is None else min(self.total, self.step + stop_after)
        others = config["processes"] - 1
        size = sum(p.numel() for p in part.parameters)
        shared = {
            "step": torch.full((1,), -1, dtype=torch.long),
            "weights": torch.zeros(size),
            "gradients": torch.zeros(others, size),
            "report": torch.zeros(others, len(_TERMS)),
            "done": torch.full((others,), -1, dtype=torch.long),
        }
        helpers = []
        for rank in range(1, config["processes"]):
            for tensor in shared.values():
                tensor.share_memory_()
            arguments = (config, rank, shared, self.step, last, os.getpid())
            helper = mp.get_context("spawn").Process(target=_helper, args=arguments, daemon=True)
            helper.start()
            helpers.append(helper)
        window: dict[str, list[float]] = {}
        seen, begun = 0, time.monotonic()
        while self.step < last:
            started = time.monotonic()
            report = self._one_step(shared, helpers)
            self.step += 1
            self.seconds += time.monotonic() - started
            seen += config["stages"][stage_of(config, self.step - 1)[0]]["batch"]
            for name, value in report.items():
                window.setdefault(name, []).append(value)
            if self.step % config["log_every"] == 0 or self.step == last:
                row = {name: round(float(np.mean(values)), 4) for name, values in window.items()}
                rate = seen / (time.monotonic() - begun)
                name = config["stages"][stage_of(config, self.step - 1)[0]]["name"]
                pace = {"images_per_s": round(rate, 1), "minutes": round(self.seconds / 60, 2)}
                self._log("log.jsonl", {"step": self.step, "stage": name, **row, **pace})
                terms = " ".join(f"{key} {value:.3f}" for key, value in row.items())
                print(f"[{self.step}/{self.total} {name}] {terms} · {rate:.0f} images/s · "
                      f"{self.seconds / 60:.1f} min", flush=True)  # fmt: skip
                window, seen, begun = {}, 0, time.monotonic()
            if self.step % config["eval_every"] == 0 or self.step == self.total:
                row = {"step": self.step, **evaluate(part.model, part.tokenizer, split="val", length=24)}
                self._log("eval.jsonl", row)
                print(f"[{self.step}] validation: {row}", flush=True)
                begun = time.monotonic()
            if self.step % config["save_every"] == 0 or self.step == last:
                self.save()
        for helper in helpers:
            helper.join(timeout=60)

    def _one_step(self, shared: dict, helpers: list) -> dict[str, float]:
        """Gradients from all processes, averaged; one optimiser step."""
        config, part, step = self.config, self.part, self.step
        rate = learning_rate(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["times"]
        if helpers:
            shared["weights"].copy_(part.weights())
            shared["step"].fill_(step)
        vector, report = part.gradients(step)
        while (shared["done"] < step).any():
            if not all(helper.is_alive() for helper in helpers):
                raise CheckpointError("a training process died: --resume continues from the checkpoint")
            time.sleep(0.002)
        for row, values in zip(shared["gradients"], shared["report"].tolist(), strict=True):
            vector = vector + row
            for name, value in zip(_TERMS, values, strict=True):
                report[name] = report.get(name, 0.0) + value
        share = 1.0 / (1 + len(helpers))
        part.take(vector * share, gradients=True)
        norm = torch.nn.utils.clip_grad_norm_(part.parameters, config["gradient_clip"])
        if not torch.isfinite(norm):
            raise CheckpointError(f"step {step}: the gradient is not finite; lower the learning rate")
        self.optimizer.step()
        with torch.no_grad():  # a temperature of at least 1/100, as in CLIP
            part.model.logit_scale.clamp_(max=math.log(100))
        return {name: value * share for name, value in report.items()}


def export(work_dir: Path, target: Path) -> str:
    """Write a run's weights as fp16 safetensors that load strictly into open_clip's; see `export_run`."""
    about = {"model": "open_clip.model.CLIP, config in clip.json", "trained_on": "ovseg.scenes, split train"}
    return export_run(work_dir, target, about=about)


def start(config: dict, work_dir: Path, resume: bool) -> ClipRun:
    """A run in a folder, new or resumed."""
    return ClipRun(config, work_dir, resume=resume)
