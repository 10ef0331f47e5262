#!/usr/bin/env python
"""Train the bundled CLIP from scratch on procedural scenes, and export it.

    python tools/train_bundled_clip.py configs/bundled/clip.yaml --work-dir work_dirs/clip
    python tools/train_bundled_clip.py configs/bundled/clip.yaml --work-dir work_dirs/clip --resume
    python tools/train_bundled_clip.py configs/bundled/clip.yaml --work-dir work_dirs/clip --export FILE

The run is a function of the config: scenes, prompts and initial weights come from its seed, and its
length is counted in steps. The work folder gets

    config.yaml        the config as run, --set applied
    checkpoint.pt      weights, optimiser state and step; replaced atomically every `save_every` steps
    log.jsonl          a line every `log_every` steps: loss terms, caption retrieval in the batch, images/s
    eval.jsonl         every `eval_every` steps: retrieval R@1 and mIoU on *validation* scenes

A killed run continues with --resume as if nothing had happened: the same batches, the same losses.
--stop-after N ends a run after N more steps, checkpoint written. Set MALLOC_TRIM_THRESHOLD_=8000000000 and
MALLOC_MMAP_THRESHOLD_=4000000000 in the environment: fewer page faults, up to twice the speed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from ovseg.errors import OvsegError
from ovseg.training.clip_run import ClipRun, export


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


def main(argv: list[str] | None = None) -> int:
    """Train, resume or export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="YAML file, e.g. configs/bundled/clip.yaml")
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
        ClipRun(config, args.work_dir, resume=args.resume).train(stop_after=args.stop_after)
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; --resume continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
