#!/usr/bin/env python
"""Train the bundled affinity ViT from scratch on procedural scenes, and export it.

    python tools/train_bundled_guide.py configs/bundled/affinity.yaml --work-dir work_dirs/guide
    python tools/train_bundled_guide.py configs/bundled/affinity.yaml --work-dir work_dirs/guide --resume
    python tools/train_bundled_guide.py configs/bundled/affinity.yaml --work-dir work_dirs/guide --export FILE

It learns from the generator's masks which patches show one thing. It has the form of DINO and is used in its
place where nothing can be downloaded; it is not DINO. The work folder gets

    config.yaml        the config as run, --set applied
    checkpoint.pt      weights, optimiser state and step; replaced atomically every `save_every` steps
    log.jsonl          a line every `log_every` steps: the pair loss of each reading, images/s
    eval.jsonl         every `eval_every` steps: figures of pairs on *validation* scenes, RGB as control

A killed run continues with --resume as if nothing had happened: the same batches, the same losses.
--stop-after N ends a run after N more steps, checkpoint written. Set MALLOC_TRIM_THRESHOLD_=8000000000 and
MALLOC_MMAP_THRESHOLD_=4000000000 in the environment: fewer page faults.
"""

from __future__ import annotations

import sys

from ovseg.training.affinity import export, start
from ovseg.training.run import command_line


def main(argv: list[str] | None = None) -> int:
    """Train, resume or export."""
    return command_line(__doc__, start, export, argv)


if __name__ == "__main__":
    sys.exit(main())
