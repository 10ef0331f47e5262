"""The figures of the model card: the bundled affinity ViT on scenes of every reporting split.

python -m ovseg.training.affinity_figures
"""

from __future__ import annotations

import json
from typing import cast

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

from ovseg.encoders.bundled_guide import load_bundled_guide
from ovseg.training.affinity import readings
from ovseg.training.affinity_evaluate import evaluate_guide

SPLITS = ("test", "pairs", "compositions", "unseen")
SEEDS = (0, 1, 2)
SCENES = 32


def main() -> None:
    """Print one JSON line a split."""
    torch.set_num_threads(1)
    trunk = cast(VisionTransformer, load_bundled_guide().trunk)
    for split in SPLITS:
        rows = [
            evaluate_guide(lambda image: readings(trunk, image), length=SCENES, split=split, seed=seed)
            for seed in SEEDS
        ]
        means = {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}
        print(json.dumps({"split": split, "scenes": f"{len(SEEDS)} seeds x {SCENES}", **means}), flush=True)


if __name__ == "__main__":
    main()
