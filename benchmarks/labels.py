"""Labels at full size: ovseg's pieces against the usual way (upsample all classes, softmax, argmax).

Each measurement is a process of its own, so that peak memory is its own; times are ratios within one run.
No weights are needed: the score maps are random.

    python benchmarks/labels.py [--size 2000 3000] [--classes 10 100 1000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time


def measure(way: str, classes: int, size_hw: tuple[int, int]) -> dict[str, float]:
    """Seconds and extra peak memory (MB) of one image, in this process."""
    import torch
    import torch.nn.functional as F

    from ovseg.resampling import Resampling
    from ovseg.score_map import ScoreMap
    from ovseg.structures import TextBank

    torch.manual_seed(0)
    embeddings = F.normalize(torch.randn(classes, 16), dim=1)
    bank = TextBank(embeddings, torch.arange(classes), tuple(map(str, range(classes))))
    cosine = torch.randn(1, classes, 28, 42).tanh() * 0.3
    score_map = ScoreMap(cosine, bank, 40.0, Resampling.bilinear((28, 42), size_hw))
    score_map.labels((64, 64))  # warm up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if way == "ovseg":
        score_map.labels()
    else:
        full = F.interpolate(score_map.logits, size=size_hw, mode="bilinear", align_corners=False)
        full.softmax(dim=1).max(dim=1)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "extra_mb": (peak - before) / 1024}


def main() -> None:
    """Measures every case in its own process and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, nargs=2, default=(1000, 1500), metavar=("H", "W"), help="pixels")
    parser.add_argument("--classes", type=int, nargs="+", default=(10, 100, 500), help="numbers of classes")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each case; the median counts")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size_hw = (options.size[0], options.size[1])
    if options.case:
        print(json.dumps(measure(options.case[0], int(options.case[1]), size_hw)))
        return
    print(f"{size_hw[0]} x {size_hw[1]} pixels, median of {options.repeats}")
    print(f"{'classes':>8} {'usual s':>9} {'ovseg s':>9} {'ratio':>6} {'usual MB':>9} {'ovseg MB':>9}")
    for classes in options.classes:
        medians = {}
        for way in ("usual", "ovseg"):
            command = [sys.executable, __file__, "--size", *map(str, size_hw), "--case", way, str(classes)]
            runs = [json.loads(subprocess.check_output(command)) for _ in range(options.repeats)]
            medians[way] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        usual, ours = medians["usual"], medians["ovseg"]
        print(
            f"{classes:>8} {usual['seconds']:>9.2f} {ours['seconds']:>9.2f} "
            f"{ours['seconds'] / usual['seconds']:>6.2f} {usual['extra_mb']:>9.0f} {ours['extra_mb']:>9.0f}"
        )


if __name__ == "__main__":
    main()
