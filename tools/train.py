"""Train what a config says is trained. Thin on purpose: arguments here, the work in `ovseg.mm`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

EXAMPLES = """\
on scenes, drawn on the fly with the bundled model, in minutes on two cores, no files needed:
  python tools/train.py configs/clip-dinoiser/clip-dinoiser_train_bundled_scenes.py

on a dataset (its files as in docs/datasets.md):
  python tools/train.py configs/clip-dinoiser/clip-dinoiser_train_vitb16-laion2b_imagenet.py
  python tools/train.py CONFIG --cfg-options train_dataloader.dataset.data_root=/data/imagenet

stopped? the same command with --resume goes on as if it had not been:
  python tools/train.py CONFIG --resume
  python tools/train.py CONFIG --resume work_dirs/CONFIG/iter_500.pth --cfg-options train_cfg.max_iters=2000

faster, or more at a time:
  python tools/train.py CONFIG --amp bf16
  python tools/train.py CONFIG --cfg-options optim_wrapper.accumulative_counts=4
  torchrun --nproc-per-node 4 tools/train.py CONFIG --launcher pytorch
  srun --ntasks 8 --gres gpu:8 python tools/train.py CONFIG --launcher slurm

then:
  python tools/test.py CONFIG work_dirs/CONFIG/iter_1000.pth
  python tools/infer.py photos/ --method CONFIG --weights work_dirs/CONFIG/iter_1000.pth -c 'cat, dog'

exit status: 0 trained, 1 stopped by an error in its course, 2 wrong usage or missing files, 130 Ctrl-C.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train what a config says is trained; the rest of the model stays frozen.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", help="an OpenMMLab config (.py) with a trainable model")
    parser.add_argument(
        "--work-dir",
        type=Path,
        help="folder for checkpoints, logs and the curve (default: work_dirs/<config>)",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CKPT",
        help="go on from a checkpoint; without CKPT from the last one in the work dir, if there is one",
    )
    parser.add_argument(
        "--amp",
        nargs="?",
        const="bf16",
        choices=("bf16", "fp16"),
        help="mixed precision: bf16 (the default of the switch; CPU or GPU) or fp16 (GPU, loss scaling)",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change the config, as train_cfg.max_iters=2000 or optim_wrapper.optimizer.lr=1e-3",
    )
    parser.add_argument(
        "--seed", type=int, help="of order, augmentation and initial weights (default: config's)"
    )
    parser.add_argument(
        "--log-to",
        nargs="+",
        default=[],
        choices=("local", "tensorboard"),
        help="where numbers go (default: local, the JSON lines that the curve is drawn from)",
    )
    parser.add_argument("--launcher", default="none", choices=("none", "pytorch", "slurm", "mpi"))
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    work_dir = arguments.work_dir or Path("work_dirs") / Path(arguments.config).stem
    from ovseg.errors import CheckpointError, ConfigError, MissingDependencyError, OvsegError

    try:
        return train(arguments, work_dir)
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | CheckpointError | MissingDependencyError) else 1
    except KeyboardInterrupt:
        print(
            f"\nstopped. Go on from the last checkpoint in {work_dir} with: "
            f"python tools/train.py {arguments.config} --work-dir {work_dir} --resume",
            file=sys.stderr,
        )
        return 130


def train(arguments: argparse.Namespace, work_dir: Path) -> int:
    """A config through mmengine's Runner."""
    from ovseg.arguments import parse_options
    from ovseg.mm import load_config
    from ovseg.mm.train import prepare_training, run_training

    os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    config = prepare_training(
        load_config(
            arguments.config, parse_options(arguments.cfg_options, "--cfg-options", lower_case=False)
        ),
        work_dir=work_dir,
        resume=arguments.resume,
        amp=arguments.amp,
        launcher=arguments.launcher,
        seed=arguments.seed,
        log_to=arguments.log_to,
    )
    trained = run_training(config)
    if trained.first:
        report(arguments.config, trained)
    return 0


def report(config: str, trained: Any) -> None:
    """Where the weights are, and what to do with them."""
    checkpoint = trained.best or trained.checkpoint
    figures = "  ".join(f"{name} {value:.4g}" for name, value in trained.metrics.items())
    print(f"\ntrained: {checkpoint}" + (f"\nlast validation: {figures}" if figures else ""))
    if trained.curve:
        print(f"curve: {trained.curve}")
    print(
        f"\nmeasure it:  python tools/test.py {config} {checkpoint}\n"
        f"use it:      python tools/infer.py IMAGES --method {config} --weights {checkpoint}"
    )


if __name__ == "__main__":
    sys.exit(main())
