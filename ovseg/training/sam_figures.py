"""The figures of the bundled SAM's model card, on held-out splits.

    python -m ovseg.training.sam_figures

prints them for the weights in the package: mean IoU of masks asked for by true boxes and innermost pixels.
"""

from __future__ import annotations

import json
import time

import numpy as np
import torch
from segment_anything.modeling import Sam

from ovseg.encoders.bundled_sam import load_bundled_sam
from ovseg.training.sam_batches import Prompts
from ovseg.training.sam_evaluate import evaluate
from ovseg.training.sam_pretrain import decode

SPLITS = ("test", "pairs", "compositions", "unseen")


@torch.no_grad()
def timings(sam: Sam, repeats: int = 20) -> dict[str, float]:
    """Milliseconds of the image encoder, and of the decoder for 8 boxes: the median over some repeats."""
    side = sam.image_encoder.img_size
    pixels = torch.randn(1, 3, side, side)
    embedding = sam.image_encoder(pixels)
    boxes = Prompts(boxes=torch.tensor([[20.0, 30.0, 120.0, 140.0]]).repeat(8, 1))
    calls = {"encoder": lambda: sam.image_encoder(pixels), "decoder": lambda: decode(sam, embedding, boxes)}
    found = {}
    for name, call in calls.items():
        spans = []
        for _ in range(repeats):
            begun = time.perf_counter()
            call()
            spans.append(time.perf_counter() - begun)
        found[f"{name}_ms"] = round(1000 * float(np.median(spans)), 1)
    return found


def main() -> None:
    """Print one JSON line a split."""
    sam = load_bundled_sam()
    for split in SPLITS:
        rows = [evaluate(sam, split, scenes=32, seed=seed) for seed in range(3)]
        means = {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}
        print(json.dumps({"split": split, "scenes": "3 seeds x 32", **means}), flush=True)
    print(json.dumps({"threads": torch.get_num_threads(), **timings(sam)}))


if __name__ == "__main__":
    main()
