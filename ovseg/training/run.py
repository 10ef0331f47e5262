"""What the training scripts of the bundled models share: config, schedule, checkpoints, logs, export.

A trainer gives a model, `loss(step)` and, if it likes, `evaluate(model)`:

    def start(config, work_dir, resume):
        trainer = AffinityTrainer(config)
        parts = trainer.model, trainer.loss
        return TrainingRun(config, work_dir, *parts, evaluate=trainer.evaluate, resume=resume)

    sys.exit(command_line(__doc__, start, export))      # in the tool script

The config needs `seed`, `weight_decay`, `betas`, `gradient_clip`, `warmup`, `log_every`, `save_every`,
`eval_every` and `stages`, each with `name`, `batch`, `steps` and `lr: [first, last]`; the rest is the
trainer's own.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from ovseg.errors import CheckpointError, ConfigError, OvsegError
from ovseg.scenes import SceneSettings

#: The loss of a step, a function of its number (and the weights) only, and terms to log.
Loss = Callable[[int], tuple[Tensor, Mapping[str, float]]]
#: Figures of a model on validation scenes.
Evaluate = Callable[[nn.Module], Mapping[str, float]]


def total_steps(config: dict) -> int:
    """Steps of the whole run."""
    return sum(stage["steps"] for stage in config["stages"])


def stage_of(config: dict, step: int) -> tuple[int, int]:
    """Which stage a step of the run belongs to, and its number within."""
    for number, stage in enumerate(config["stages"]):
        if step < stage["steps"]:
            return number, step
        step -= stage["steps"]
    raise ConfigError(f"step lies {step} past the end of the run")


def learning_rate(config: dict, step: int) -> float:
    """Cosine from the stage's first rate to its second, after a short linear rise."""
    number, inner = stage_of(config, step)
    stage = config["stages"][number]
    first, last = stage["lr"]
    rate = last + (first - last) * 0.5 * (1 + math.cos(math.pi * inner / stage["steps"]))
    return rate * min(1.0, 0.2 + 0.8 * inner / max(1, config["warmup"]))


def scene_settings(config: dict) -> SceneSettings:
    """A stage's `scenes` entry; lists are ranges."""
    options: dict = {key: tuple(each) if isinstance(each, list) else each for key, each in config.items()}
    return SceneSettings(**options)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices and kernels decay; vectors, tokens and positions do not."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim < 2 or "pos" in name or "token" in name
            (others if plain else matrices).append(parameter)
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def claim_folder(work_dir: Path, config: dict, *, resume: bool) -> Path:
    """Make a run's folder, with its config, and return where its checkpoint is or will be.

    Raises:
        ConfigError: the folder holds another run and `resume` is False.
    """
    checkpoint = Path(work_dir) / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise ConfigError(f"{work_dir} holds a run: pass --resume, or another --work-dir")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    (checkpoint.parent / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return checkpoint


def save_checkpoint(state: dict, path: Path) -> None:
    """Write a checkpoint next to the old one, then replace it."""
    fresh = path.with_suffix(".tmp")
    with fresh.open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(fresh, path)


class TrainingRun:
    """A run of one process in a folder: stepwise, resumable, repeatable.

    Args:
        config: see the module.
        work_dir: made if absent; gets config.yaml, checkpoint.pt, log.jsonl, eval.jsonl.
        model: what is trained and saved, float32.
        loss: `loss(step)`; draws its batch and all random numbers from the step's number, so that a resumed
            run gives the same curve.
        evaluate: called with the model (in eval mode, without gradients) every `eval_every` steps.
        resume: continue from the folder's checkpoint (from the start if there is none).

    Raises:
        ConfigError: the folder holds another run and `resume` is False.
    """

    def __init__(
        self,
        config: dict,
        work_dir: Path,
        model: nn.Module,
        loss: Loss,
        *,
        evaluate: Evaluate | None = None,
        resume: bool = False,
    ) -> None:
        self.config, self.work_dir = config, Path(work_dir)
        self.model, self.loss, self.evaluate = model, loss, evaluate
        self.total = total_steps(config)
        self.checkpoint = claim_folder(self.work_dir, config, resume=resume)
        groups = decay_groups(model, config["weight_decay"])
        self.optimizer = torch.optim.AdamW(groups, betas=tuple(config["betas"]))
        self.step, self.seconds = 0, 0.0
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        save_checkpoint(state | {"step": self.step, "seconds": self.seconds}, self.checkpoint)

    def train(self, *, stop_after: int | None = None) -> None:
        """Run to the end, or for `stop_after` steps."""
        config = self.config
        last = self.total if stop_after is None else min(self.total, self.step + stop_after)
        window: dict[str, list[float]] = {}
        images, started = 0, self.seconds
        while self.step < last:
            begun = time.monotonic()
            stage = config["stages"][stage_of(config, self.step)[0]]
            for name, value in self._one_step().items():
                window.setdefault(name, []).append(value)
            self.step += 1
            self.seconds += time.monotonic() - begun
            images += stage["batch"]
            if self.step % config["log_every"] == 0 or self.step == last:
                terms = {name: round(float(np.mean(values)), 4) for name, values in window.items()}
                pace = {
                    "images_per_s": round(images / max(self.seconds - started, 1e-9), 1),
                    "minutes": round(self.seconds / 60, 2),
                }
                self._log("log.jsonl", {"stage": stage["name"], **terms, **pace})
                window, images, started = {}, 0, self.seconds
            if self.evaluate and (self.step % config["eval_every"] == 0 or self.step == self.total):
                self.model.eval()
                with torch.no_grad():
                    self._log("eval.jsonl", {k: round(v, 4) for k, v in self.evaluate(self.model).items()})
            if self.step % config["save_every"] == 0 or self.step == last:
                self.save()

    def _one_step(self) -> Mapping[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss, report = self.loss(self.step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config["gradient_clip"])
        if not torch.isfinite(norm):
            raise CheckpointError(f"step {self.step}: the gradient is not finite; lower the learning rate")
        self.optimizer.step()
        return {"loss": loss.item(), **report}

    def _log(self, name: str, values: dict) -> None:
        """Add a line; lines of steps after the checkpoint are written again by a resumed run, same values."""
        with (self.work_dir / name).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": self.step, **values}) + "\n")
        words = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in values.items())
        print(f"[{self.step}/{self.total}] {words}", flush=True)


def export_run(
    work_dir: Path,
    target: Path,
    *,
    about: Mapping[str, str],
    rename: Callable[[str], str | None] = lambda name: name,
) -> str:
    """Write a run's weights as fp16 safetensors, with metadata; single numbers (a logit scale) stay float32.

    Args:
        work_dir: the run's folder.
        target: file to write, atomically.
        about: metadata beside the run's own: what model it is, what it was trained on.
        rename: from a name in the checkpoint to the file's, None to leave it out.

    Returns:
        One line about what was written.

    Raises:
        CheckpointError: the folder has no checkpoint.
    """
    checkpoint = Path(work_dir) / "checkpoint.pt"
    if not checkpoint.exists():
        raise CheckpointError(f"no checkpoint in {work_dir}: train first, or pass the run's --work-dir")
    state = torch.load(checkpoint, weights_only=True)
    config = yaml.safe_load((Path(work_dir) / "config.yaml").read_text(encoding="utf-8"))
    weights = {
        fresh: (value.half() if value.is_floating_point() and value.numel() > 1 else value).contiguous()
        for name, value in state["model"].items()
        if (fresh := rename(name)) is not None
    }
    steps, minutes = f"{state['step']} of {total_steps(config)}", f"{state['seconds'] / 60:.1f}"
    facts = {"config": json.dumps(config), "seed": str(config["seed"]), "steps": steps, "minutes": minutes}
    fresh_file = Path(target).with_suffix(".tmp")
    save_file(weights, fresh_file, {"format": "pt", **about, **facts})
    fresh_file.chmod(0o644)  # safetensors writes for the owner alone, and wheels keep that
    os.replace(fresh_file, target)
    return f"{target}: {Path(target).stat().st_size / 1e6:.2f} MB, step {steps}, {minutes} minutes"


def apply_overrides(config: dict, overrides: list[str]) -> dict:
    """Set dotted keys, lists by number: `stages.0.steps=20`.

    Args:
        config: changed in place.
        overrides: `key=value` with a YAML value.

    Raises:
        SystemExit: a key that the config does not have.
    """
    for item in overrides:
        path, _, value = item.partition("=")
        *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
        try:
            target = config
            for key in parents:
                target = target[key]
            target[last]
        except (KeyError, IndexError, TypeError):
            raise SystemExit(f"--set {item}: the config has no '{path}'") from None
        target[last] = yaml.safe_load(value)
    return config


class _Trainable(Protocol):
    def train(self, *, stop_after: int | None = None) -> None: ...


def command_line(
    description: str | None,
    start: Callable[[dict, Path, bool], _Trainable],
    export: Callable[[Path, Path], str],
    argv: list[str] | None = None,
) -> int:
    """The command line of a training script: train, resume or export.

    Args:
        description: the script's own.
        start: (config, work_dir, resume) to a run.
        export: (work_dir, file) to one line about the file written.
        argv: arguments; None takes the program's.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="YAML file, one of configs/bundled")
    parser.add_argument("--work-dir", type=Path, required=True, help="where the run lives")
    parser.add_argument("--resume", action="store_true", help="continue from the folder's checkpoint")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="change config values")
    parser.add_argument("--stop-after", type=int, metavar="N", help="end after N steps of this call")
    parser.add_argument("--export", type=Path, metavar="FILE", help="write fp16 safetensors and stop")
    args = parser.parse_args(argv)
    config = apply_overrides(yaml.safe_load(args.config.read_text(encoding="utf-8")), args.set)
    try:
        if args.export:
            print(export(args.work_dir, args.export))
            return 0
        start(config, args.work_dir, args.resume).train(stop_after=args.stop_after)
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; --resume continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0
