"""A config's test through mmengine's Runner, with mistakes found before the work begins."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from ovseg.encoders.checkpoints import load_state_dict
from ovseg.errors import CheckpointError, ConfigError
from ovseg.layouts import shown_layout
from ovseg.mm.build import model_of
from ovseg.mm.hooks import model_of_runner
from ovseg.mm.trainable import TrainableModel

_runs = itertools.count(1)
LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
#: Keys of a config that a test does not ask.
TRAINING = (
    *("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler"),
    *("val_dataloader", "val_cfg", "val_evaluator"),
)


def prepare(
    config: Config,
    *,
    work_dir: str | Path,
    out: str | Path | None = None,
    show_dir: str | Path | None = None,
    limit: int | None = None,
    launcher: str = "none",
) -> Config:
    """The config with what a command line adds; changed in place and handed back.

    Args:
        config: with a model, a `test_dataloader` and a `test_evaluator`.
        work_dir: folder for logs.
        out: folder for predicted labels as PNG, with the dataset's own numbers.
        show_dir: folder for pictures.
        limit: only the first so many images.
        launcher: one of `LAUNCHERS`.

    Raises:
        ConfigError: something is missing from the config, or its data are not where it says.
    """
    model_of(config)
    for key in ("test_dataloader", "test_evaluator"):
        if key not in config:
            raise ConfigError(
                f"config {config.filename or ''} has no {key}: add a _base_/datasets file to it"
            )
    check_data(config.test_dataloader.dataset)
    for key in TRAINING:  # the Runner wants all or none of them
        config[key] = None
    config.work_dir = str(work_dir)
    config.launcher = launcher
    if "test_cfg" not in config:
        config.test_cfg = {"type": "TestLoop"}
    if limit is not None:
        if limit < 1:
            raise ConfigError(f"limit must be at least 1, got {limit}")
        config.test_dataloader.dataset.indices = limit
    if out is not None:
        config.test_evaluator.output_dir = str(out)
    if show_dir is not None:
        hooks = [*config.get("custom_hooks", []), {"type": "OverlayHook", "folder": str(show_dir)}]
        config.custom_hooks = hooks
    return config


def check_data(dataset: Mapping[str, Any], where: str = "test_dataloader.dataset") -> None:
    """Looks whether a dataset's files are there.

    Args:
        dataset: its config.
        where: its key in the config, for the message.

    Raises:
        ConfigError: naming the folder that was expected and showing what should be in it.
    """
    root = dataset.get("data_root")
    if not root:
        return
    wanted = [dataset["ann_file"]] if dataset.get("ann_file") else []
    prefixes = dataset.get("data_prefix", {})
    wanted += [
        folder for folder in ([prefixes] if isinstance(prefixes, str) else prefixes.values()) if folder
    ]
    missing = [str(Path(root) / each) for each in wanted or [""] if not _is_there(Path(root) / each)]
    if missing:
        raise ConfigError(
            f"the dataset is not where the config looks for it: no {', '.join(missing)}. Put it or link it "
            f"there (docs/datasets.md says how to get it), or say where it is: "
            f"--cfg-options {where}.data_root=FOLDER{shown_layout(str(dataset.get('type', '')), str(root))}"
        )


def _is_there(path: Path) -> bool:
    """A file, or a folder with something in it."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def run_test(config: Config, checkpoint: str | Path | None = None) -> dict[str, float]:
    """Tests a prepared config.

    Args:
        config: see `prepare`.
        checkpoint: what `tools/train.py` wrote, or a state dict of an OvSegmentor; read without running its
            pickle.

    Returns:
        The evaluator's figures, such as `mIoU` in percent.

    Raises:
        ConfigError: the vocabulary and the dataset have different numbers of classes.
        CheckpointError: the checkpoint is unsafe, damaged or does not fit.
    """
    # mmengine's own loader falls back to full unpickling, which can run code: it never sees a file.
    checkpoint = checkpoint or config.get("load_from")
    config.load_from = None
    config.resume = False
    if config.model.get("init_cfg"):
        raise ConfigError("model.init_cfg would unpickle a file without restriction: use load_from instead")
    name_anew(config)
    runner = Runner.from_cfg(config)
    model = model_of_runner(runner)
    if checkpoint is not None:
        load_weights(model, Path(checkpoint))
    names = runner.test_loop.dataloader.dataset.metainfo.get("classes", ())
    wanted = model.vocabulary
    if wanted is not None and names and len(names) != len(wanted):
        raise ConfigError(
            f"the model's vocabulary has {len(wanted)} classes and the dataset {len(names)} "
            f"({', '.join(list(names)[:3])}, ...): they must be the same, in the same order"
        )
    return {name: float(value) for name, value in runner.test().items()}


def name_anew(config: Config) -> None:
    """Numbers the run: mmengine keeps loggers and scopes by name and second, and runs may take less."""
    name = str(config.get("experiment_name") or Path(config.filename or "run").stem)
    config.experiment_name = f"{name.partition(' run ')[0]} run {next(_runs)}"


def load_weights(model: Any, checkpoint: Path) -> None:
    """What was trained into a model that is trained, a whole state dict into any other.

    Raises:
        CheckpointError: unsafe, damaged, or it does not fit.
    """
    if isinstance(model, TrainableModel):
        model.load_trained(checkpoint)
        return
    try:
        model.load_state_dict(load_state_dict(checkpoint))
    except RuntimeError as error:
        if isinstance(error, CheckpointError):
            raise  # its own message says more
        raise CheckpointError(f"{checkpoint} does not fit the model: {error}") from error
