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

import sys

from ovseg.training.clip_run import export, start
from ovseg.training.run import command_line


def main(argv: list[str] | None = None) -> int:
    """Train, resume or export."""
    return command_line(__doc__, start, export, argv)


if __name__ == "__main__":
    sys.exit(main())
