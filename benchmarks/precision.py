"""How far half precision changes predictions: agreement with float32 on held-out scenes, method by method.

python benchmarks/precision.py proxyclip trident --dtype bf16 --num-scenes 16
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from ovseg.mm.build import inferencer_from_config, templates_of
from ovseg.scenes import SceneSet

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def agreement(method: str, dtype: str, scenes: SceneSet, device: str = "auto") -> float:
    """Share of the pixels that get the same class.

    Args:
        method: its `configs/<method>/<method>_bundled_scenes.py` is used.
        dtype: bf16 or fp16.
        scenes: which.
        device: see `ovseg.Inferencer`.
    """
    config = CONFIGS / method / f"{method}_bundled_scenes.py"
    exact, fast = (inferencer_from_config(config, device=device, dtype=each) for each in ("float32", dtype))
    same = total = 0
    for index in tqdm(range(len(scenes)), desc=method, unit="scene", leave=False, disable=None):
        image = scenes[index].image
        labels = [
            next(each([image], scenes.classes, templates=templates_of(config))).labels
            for each in (exact, fast)
        ]
        same += int((labels[0] == labels[1]).sum())
        total += labels[0].size
    return same / total


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="+", metavar="METHOD")
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--num-scenes", type=int, default=16)
    arguments = parser.parse_args()
    scenes = SceneSet("test", 0, length=arguments.num_scenes)
    print(f"| method | pixels with the same class, {arguments.dtype} and float32 (%) |\n|---|---:|")
    for method in arguments.methods:
        share = agreement(method, arguments.dtype, scenes, arguments.device)
        print(f"| {method} | {100 * share:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
