"""A config's training, from a command line's wishes to the last checkpoint.

Mistakes are found before the work begins.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from ovseg.encoders.checkpoints import load_checkpoint
from ovseg.errors import CheckpointError, ConfigError, MissingDependencyError
from ovseg.mm.build import plain
from ovseg.mm.curves import draw_curves
from ovseg.mm.runner import check_data, name_anew
from ovseg.mm.train_runner import TrainRunner

AMP = ("bf16", "fp16")
BACKENDS = {"local": "LocalVisBackend", "tensorboard": "TensorboardVisBackend"}
#: Samplers whose order and augmentation a resumed run can repeat, through ours.
_SAMPLERS = {"InfiniteSampler": True, "DefaultSampler": False}
#: Each launcher's names of rank, number of processes, and rank on the machine.
_RANKS = {
    "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}

_STARTERS = {
    "pytorch": "torchrun --nproc-per-node N",
    "slurm": "srun --ntasks N python",
    "mpi": "mpirun -n N python",
}


@dataclass(frozen=True)
class Trained:
    """What a training leaves behind.

    Attributes:
        checkpoint: the last one.
        best: the best one, where the config asks for it (`save_best`).
        curve: picture of losses and figures.
        metrics: the last validation's figures.
        first: whether this is the process that reports, of several.
    """

    checkpoint: Path
    best: Path | None
    curve: Path | None
    metrics: dict[str, float]
    first: bool


def prepare_training(
    config: Config,
    *,
    work_dir: str | Path,
    resume: str | Path | None = None,
    amp: str | None = None,
    launcher: str = "none",
    seed: int | None = None,
    log_to: Sequence[str] = (),
) -> Config:
    """The config with what a command line adds; changed in place and handed back.

    Args:
        config: with a trainable model, `train_dataloader`, `train_cfg` and `optim_wrapper`. With
            `validate_first = True` the untrained model is measured, too.
        work_dir: folder for checkpoints and logs.
        resume: a checkpoint, or "auto" for the last one in `work_dir` (from the start, if there is none).
        amp: "bf16" or "fp16" (GPUs only).
        launcher: see `ovseg.mm.runner.LAUNCHERS`.
        seed: of everything; by default the config's, when resuming the checkpoint's.
        log_to: of `BACKENDS`, instead of what the config says.

    Raises:
        ConfigError: something is missing from the config, its data are not where it says, or wishes clash.
        CheckpointError: there is nothing to resume from.
    """
    kind = str(config.get("model", {}).get("type", "")).removeprefix("ovseg.")
    if kind == "OvSegmentor":
        raise ConfigError(
            f"config {config.filename or ''} is of a training-free method, nothing is to train. Test it: "
            f"python tools/test.py {config.filename or 'CONFIG'}"
        )
    for key in ("model", "train_dataloader", "train_cfg", "optim_wrapper"):
        if not config.get(key):
            raise ConfigError(
                f"config {config.filename or ''} has no {key}: begin it with _base_/runtime/train.py and a "
                f"_base_/datasets file for training (docs/training.md)"
            )
    check_nothing_unpickles(config.model)
    for key in ("train_dataloader", "val_dataloader"):
        if config.get(key):
            for where, dataset in datasets_of(config[key].dataset, f"{key}.dataset"):
                check_data(dataset, where)
    if not config.get("val_dataloader"):
        config.val_dataloader = config.val_evaluator = config.val_cfg = None
    config.test_dataloader = config.test_evaluator = config.test_cfg = None  # all or none, asks the Runner
    config.work_dir, config.launcher = str(work_dir), launcher
    config.randomness = {**config.get("randomness", {}), **({} if seed is None else {"seed": seed})}
    config.resume = False
    if resume is not None:
        _resume(config, resume, seed)
    if amp is not None:
        config.optim_wrapper = with_amp(config.optim_wrapper, amp)
    config.optim_wrapper.setdefault("constructor", "TrainedParameters")
    if log_to:
        config.visualizer = {"type": "Visualizer", "vis_backends": [_backend(name) for name in log_to]}
    make_repeatable(config)
    watching = [{"type": "IterationSeedHook"}, {"type": "FiniteLossHook"}]
    if config.get("validate_first"):
        watching.append({"type": "ValidateFirstHook"})
    config.custom_hooks = [*watching, *config.get("custom_hooks", [])]
    return config


def datasets_of(dataset: Mapping[str, Any], where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The dataset and those that it wraps, with their keys in the config."""
    yield where, dataset
    inner = dataset.get("datasets") or ([dataset["dataset"]] if dataset.get("dataset") else [])
    for number, each in enumerate(inner):
        key = f"{where}.datasets.{number}" if "datasets" in dataset else f"{where}.dataset"
        yield from datasets_of(each, key)


def check_nothing_unpickles(model: Any, where: str = "model") -> None:
    """Raises ConfigError where mmengine would read a checkpoint itself: it falls back to full unpickling."""
    if isinstance(model, Mapping):
        asked = model.get("pretrained") or (model.get("type") == "Pretrained" and model.get("checkpoint"))
        if isinstance(asked, str):
            raise ConfigError(
                f"{where} asks mmengine to load '{asked}', which would unpickle it without restriction: name "
                f"encoders by ovseg's table (docs/weights.md), or begin from a checkpoint with load_from"
            )
        for key, value in model.items():
            check_nothing_unpickles(value, f"{where}.{key}")
    elif isinstance(model, list | tuple):
        for number, value in enumerate(model):
            check_nothing_unpickles(value, f"{where}.{number}")


def with_amp(optim_wrapper: Mapping[str, Any], dtype: str) -> Any:
    """The optimiser's wrapper with mixed precision.

    Raises:
        ConfigError: unknown dtype, fp16 without a GPU, or a wrapper of its own kind.
    """
    if dtype not in AMP:
        raise ConfigError(f"--amp is '{dtype}': expected {' or '.join(AMP)}")
    if optim_wrapper.get("type", "OptimWrapper") != "OptimWrapper":
        raise ConfigError(
            f"--amp needs optim_wrapper.type 'OptimWrapper', the config has {optim_wrapper['type']}"
        )
    if dtype == "bf16":
        changes: dict[str, Any] = {"type": "AutocastOptimWrapper"}
    elif torch.cuda.is_available():
        changes = {"type": "AmpOptimWrapper", "dtype": "float16", "loss_scale": "dynamic"}
    else:
        raise ConfigError("--amp fp16 needs a GPU, and torch sees none: use --amp bf16")
    wrapper = Config(plain(optim_wrapper))
    wrapper.merge_from_dict(changes)
    return wrapper._cfg_dict


def _backend(name: str) -> dict[str, str]:
    if name not in BACKENDS:
        raise ConfigError(f"cannot log to '{name}': expected {', '.join(BACKENDS)}")
    if name == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise MissingDependencyError("logging to TensorBoard needs it installed: pip install tensorboard")
    return {"type": BACKENDS[name]}


def _resume(config: Config, resume: str | Path, seed: int | None) -> None:
    """Sets what makes the Runner go on, seed included."""
    if str(resume) == "auto":
        found = find_latest_checkpoint(config.work_dir) if Path(config.work_dir).is_dir() else None
        if found is None:
            return
        resume = found
    says = load_checkpoint(Path(resume)).get("meta", {})
    if "iter" not in says:
        raise CheckpointError(f"{resume} cannot be resumed from: it holds weights only, use load_from=FILE")
    if seed is not None and seed != says.get("seed"):
        raise ConfigError(
            f"--seed {seed} contradicts the checkpoint, which was trained with seed {says.get('seed')}: "
            f"leave --seed out, or start anew in another --work-dir"
        )
    config.resume, config.load_from = True, str(resume)
    config.randomness["seed"] = says["seed"]


def make_repeatable(config: Config) -> None:
    """Order, augmentation and checkpoints such that a resumed run goes on as if it had not stopped."""
    loader = config.train_dataloader
    sampler = plain(loader.get("sampler") or {"type": "InfiniteSampler"})
    by_epoch = bool(config.train_cfg.get("by_epoch")) or config.train_cfg.get("type") == "EpochBasedTrainLoop"
    if sampler.get("type") in _SAMPLERS:
        loader.sampler = {
            "type": "DrawSampler",
            "shuffle": sampler.get("shuffle", True),
            "endless": not by_epoch,
        }
        loader.dataset = {"type": "SeededDataset", "dataset": plain(loader.dataset)}
    if by_epoch:
        config.train_cfg.pop("by_epoch", None)
        config.train_cfg["type"] = "ResumableEpochLoop"
    if not loader.get("num_workers"):
        loader.persistent_workers = False
    hook = config.get("default_hooks", {}).get("checkpoint")
    together = config.optim_wrapper.get("accumulative_counts", 1)
    if hook and not hook.get("by_epoch", True) and hook.get("interval", -1) > 0:
        hook["interval"] = -(-hook["interval"] // together) * together  # never between gradients


def start_processes(launcher: str) -> None:
    """Joins the processes of a launcher on a machine without GPUs; with GPUs, mmengine does.

    Raises:
        ConfigError: the launcher has not started this process.
    """
    if launcher == "none":
        return
    absent = [name for name in _RANKS[launcher] if name not in os.environ]
    if absent:
        starter = _STARTERS[launcher]
        raise ConfigError(
            f"--launcher {launcher} is for processes that {starter.split()[0]} has started "
            f"({', '.join(absent)} not set): {starter} tools/train.py CONFIG --launcher {launcher}"
        )
    if torch.cuda.is_available() or torch.distributed.is_initialized():
        return
    for name, given in zip(_RANKS["pytorch"], _RANKS[launcher], strict=True):
        os.environ[name] = os.environ[given]
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    torch.distributed.init_process_group("gloo")


def run_training(config: Config) -> Trained:
    """Trains a prepared config.

    Raises:
        LossError: a loss is NaN or infinite.
        CheckpointError: what should be resumed or loaded is unsafe, damaged or does not fit.
    """
    start_processes(config.launcher)
    name_anew(config)
    runner = TrainRunner.from_cfg(config)
    with warnings.catch_warnings():
        # while gradients add up, schedules by iteration step before the optimiser does, as intended
        warnings.filterwarnings("ignore", "Detected call of `scheduler.step", UserWarning)
        runner.train()
    work_dir = Path(config.work_dir)
    info = runner.message_hub.runtime_info
    best = info.get("best_ckpt")
    curve = draw_curves(work_dir) if runner.rank == 0 else None
    metrics = {
        name.removeprefix("val/"): float(buffer.current())
        for name, buffer in runner.message_hub.log_scalars.items()
        if name.startswith("val/") and name not in ("val/time", "val/data_time")
    }
    last = info.get("last_ckpt") or find_latest_checkpoint(str(work_dir))
    return Trained(Path(last), None if best is None else Path(best), curve, metrics, runner.rank == 0)
