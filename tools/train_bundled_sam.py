#!/usr/bin/env python
"""Train the bundled SAM from scratch on procedural scenes, and export it.

    python tools/train_bundled_sam.py configs/bundled/sam.yaml --work-dir work_dirs/sam
    python tools/train_bundled_sam.py configs/bundled/sam.yaml --work-dir work_dirs/sam --resume
    python tools/train_bundled_sam.py configs/bundled/sam.yaml --work-dir work_dirs/sam --export FILE

The run is a function of the config: scenes, prompts and initial weights come from its seed, and its
length is counted in steps. The work folder gets

    config.yaml        the config as run, --set applied
    checkpoint.pt      weights, optimiser state and step; replaced atomically every `save_every` steps
    log.jsonl          a line every `log_every` steps: loss terms, IoU in the batch, images/s
    eval.jsonl         every `eval_every` steps: mean IoU by box and by point on *validation* scenes

A killed run continues with --resume as if nothing had happened: the same batches, the same losses.
--stop-after N ends a run after N more steps, checkpoint written. Set MALLOC_TRIM_THRESHOLD_=8000000000 and
MALLOC_MMAP_THRESHOLD_=4000000000 in the environment: fewer page faults, up to twice the speed.
"""

from __future__ import annotations

import sys

from ovseg.training.run import command_line
from ovseg.training.sam_run import export, start


def main(argv: list[str] | None = None) -> int:
    """Train, resume or export."""
    return command_line(__doc__, start, export, argv)


if __name__ == "__main__":
    sys.exit(main())
