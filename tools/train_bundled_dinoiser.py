#!/usr/bin/env python
"""Train FOUND's decoder and CLIP-DINOiser's convolutions for the bundled models, and export them.

    python tools/train_bundled_dinoiser.py configs/bundled/found.yaml --work-dir work_dirs/found
    python tools/train_bundled_dinoiser.py configs/bundled/found.yaml --work-dir work_dirs/found --export FILE
    python tools/train_bundled_dinoiser.py configs/bundled/dinoiser.yaml --work-dir work_dirs/dinoiser

and again with --export for the convolutions, with --resume for a run that was stopped.

FOUND comes first: the convolutions learn from it. Both see the pictures of training scenes, and no masks or
words. The work folder gets

    config.yaml        the config as run, --set applied
    checkpoint.pt      weights, optimiser state and step; replaced atomically every `save_every` steps
    log.jsonl          a line every `log_every` steps: loss terms, images/s
    eval.jsonl         every `eval_every` steps: figures on *validation* scenes

A killed run continues with --resume as if nothing had happened: the same pictures, the same losses.
--stop-after N ends a run after N more steps, checkpoint written. FOUND's training needs scipy.
"""

from __future__ import annotations

import sys

from ovseg.training.dinoiser_run import export, start
from ovseg.training.run import command_line


def main(argv: list[str] | None = None) -> int:
    """Train, resume or export."""
    return command_line(__doc__, start, export, argv)


if __name__ == "__main__":
    sys.exit(main())
