"""What merging tokens costs in mIoU and gains in time: one row for each share of tokens that a block keeps.

    python benchmarks/token_merging.py                                  (the bundled CLIP on scenes)
    python benchmarks/token_merging.py --method proxyclip --keep 1 0.9 0.8 --rules pitome tome
    python benchmarks/token_merging.py --timing-only --architecture ViT-B-16 --side 448 672

Times of all rows are measured in turn, image by image, so that a busy machine slows all of them alike; the
ratio is the median over images of a row's time to that of the unmerged tower.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import open_clip
import torch

from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.token_merging import TokenMerging
from ovseg.metrics import IoU
from ovseg.mm.build import inferencer_from_config, templates_of
from ovseg.scenes import SceneSet

ROOT = Path(__file__).resolve().parents[1]


def in_turn(
    encoder: ClipEncoder, merging: Sequence[TokenMerging | None], work: Callable[[], Any]
) -> tuple[list[float], list[Any]]:
    """Seconds and result of the work with each way of merging."""
    seconds, results = [], []
    for each in merging:
        encoder.merging = each
        start = time.perf_counter()
        results.append(work())
        seconds.append(time.perf_counter() - start)
    return seconds, results


def ratios(seconds: Sequence[Sequence[float]]) -> list[float]:
    """Median over the images of each row's time to the first row's."""
    return [median(each[row] / each[0] for each in seconds) for row in range(len(seconds[0]))]


def rows(arguments: argparse.Namespace) -> list[TokenMerging | None]:
    """No merging first."""
    chosen: list[TokenMerging | None] = [None]
    for rule in arguments.rules:
        for keep in arguments.keep:
            if keep < 1:
                chosen.append(TokenMerging(keep, arguments.margin, rule=rule, first=arguments.first))
    return chosen


def print_table(merging: Sequence[TokenMerging | None], columns: dict[str, Sequence[str]]) -> None:
    """Markdown."""
    print("| rule | keep | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    for row, each in enumerate(merging):
        name, keep = ("none", "1") if each is None else (each.rule, f"{each.keep:g}")
        print(f"| {name} | {keep} | " + " | ".join(values[row] for values in columns.values()) + " |")


@torch.inference_mode()
def on_scenes(arguments: argparse.Namespace) -> None:
    """Accuracy and time of the image side of a method."""
    config = ROOT / "configs" / arguments.method / f"{arguments.method}_bundled_scenes.py"
    inferencer = inferencer_from_config(config, device="cpu")
    scorer = inferencer.scorer
    scenes = SceneSet(arguments.split, arguments.seed, length=arguments.scenes, size_hw=arguments.size)
    _, bank = inferencer.bank(list(scenes.classes), templates_of(config))
    merging = rows(arguments)
    measured = [IoU(len(scenes.classes)) for _ in merging]
    seconds: list[list[float]] = []
    for scene in (scenes[index] for index in range(len(scenes))):
        pictures = scorer.prepare([scene.image])

        if not seconds:
            scorer.encode(pictures)  # warm
        taken, found = in_turn(
            scorer.encoder, merging, partial(scorer.encode, pictures, scene.image.shape[:2])
        )
        seconds.append(taken)
        for features, iou in zip(found, measured, strict=True):
            score_map = scorer.refined(scorer.score(features, bank), features)
            (result,) = inferencer.head(score_map)
            iou.update(result.labels.astype(np.int64), scene.labels.astype(np.int64))
    print(
        f"{arguments.method}, {len(scenes)} scenes ({arguments.split}, seed {arguments.seed}), image side\n"
    )
    columns: dict[str, Sequence[str]] = {
        "mIoU": [f"{100 * iou.report().mean_iou:.1f}" for iou in measured],
        "time": [f"{each:.2f}" for each in ratios(seconds)],
        "ms": [f"{1000 * median(each[row] for each in seconds):.0f}" for row in range(len(merging))],
    }
    print_table(merging, columns)


@torch.inference_mode()
def timing(arguments: argparse.Namespace) -> None:
    """Time alone, of a tower with random weights: it does not depend on them."""
    tower = open_clip.create_model(arguments.architecture).visual
    encoder = ClipEncoder(tower).eval()
    merging = rows(arguments)
    columns: dict[str, Sequence[str]] = {}
    for side in arguments.side:
        image = torch.rand(1, 3, side, side)

        encoder(image)  # warm
        found = [in_turn(encoder, merging, partial(encoder, image))[0] for _ in range(arguments.repeats)]
        columns[f"time at {side} px"] = [f"{each:.2f}" for each in ratios(found)]
    print(f"{arguments.architecture}, random weights, {torch.get_num_threads()} threads\n")
    print_table(merging, columns)


def main() -> None:
    """Arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="naclip")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.95, 0.9, 0.8, 0.7])
    parser.add_argument("--rules", nargs="+", default=["pitome", "tome"])
    parser.add_argument("--margin", type=float, default=0.9)
    parser.add_argument("--first", type=int, default=0, help="the first block that merges")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--size", type=int, nargs=2, default=(224, 288), metavar=("H", "W"))
    parser.add_argument("--timing-only", action="store_true")
    parser.add_argument("--architecture", default="ViT-B-16")
    parser.add_argument("--side", type=int, nargs="+", default=[448])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    arguments.size = tuple(arguments.size)
    (timing if arguments.timing_only else on_scenes)(arguments)


if __name__ == "__main__":
    main()
