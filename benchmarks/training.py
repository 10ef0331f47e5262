"""What each trainable part learns on drawn scenes, and in what time, through the tools that everybody has.

    python benchmarks/training.py --keep out/training --write docs/results.md --pictures docs/images
    python benchmarks/training.py --only denseclip coop --seeds 3 --keep out/training

For every config and seed: `tools/test.py` before, `tools/train.py`, `tools/test.py` after, on held-out
scenes. What `--keep` has already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parent))
from tool_runs import run

from ovseg.pages import PageSection, commit, markdown_table


@dataclass(frozen=True)
class Figure:
    """What is measured.

    Attributes:
        name: of `tools/test.py`.
        called: in the table.
        options: `--cfg-options` that choose what answers.
    """

    name: str
    called: str
    options: tuple[str, ...] = ()


#: By config, below `configs/`.
CONFIGS: dict[str, tuple[Figure, ...]] = {
    "clip-dinoiser/clip-dinoiser_train_bundled_scenes": (Figure("mIoU", "mIoU"),),
    "denseclip/denseclip_bundled_scenes": (
        Figure("mIoU", "mIoU, decoder"),
        Figure("mIoU", "mIoU, score map", ("model.answer=score_map",)),
    ),
    "coop/maskclip-coop_train_bundled_scenes": (Figure("mIoU", "mIoU"),),
    "anomalyclip/anomalyclip_train_bundled_scenes": (
        Figure("image_auroc", "image AUROC"),
        Figure("pixel_auroc", "pixel AUROC"),
        Figure("aupro", "AUPRO"),
    ),
    "clip-ebc/clip-ebc_bundled_scenes": (Figure("MAE", "MAE (less is better)"),),
    "mask-adapted-clip/mask-adapted-clip_bundled_scenes": (Figure("accuracy", "accuracy of regions"),),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure, print, and where asked write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="configs with this in their name")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 7])
    parser.add_argument("--keep", type=Path, required=True, metavar="DIR", help="work dirs and figures")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default: 1)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in this page")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="copy the first seed's curves there")
    arguments = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    chosen = [name for name in CONFIGS if not arguments.only or any(each in name for each in arguments.only)]
    jobs = [(name, seed) for name in chosen for seed in arguments.seeds]
    found = {
        job: measured(*job, arguments.keep) for job in tqdm(jobs, desc="training", disable=None, unit="run")
    }
    lines = table(chosen, arguments.seeds, found, arguments.pictures is not None)
    print("\n".join(lines))
    for name in chosen if arguments.pictures else ():
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        curve = folder_of(name, arguments.seeds[0], arguments.keep) / "curve.png"
        shutil.copy(curve, arguments.pictures / picture_of(name))
    if arguments.write:
        PageSection("training", "benchmarks/training.py").write(arguments.write, lines)
    return 0


def measured(name: str, seed: int, keep: Path) -> dict[str, Any]:
    """One config with one seed: figures before and after, seconds, iterations."""
    folder = folder_of(name, seed, keep)
    record = folder / "measured.json"
    if record.exists():
        return json.loads(record.read_text())
    config = f"configs/{name}.py"
    before = measure(name, (), seed)
    begin = time.perf_counter()
    printed = run("tools/train.py", config, "--work-dir", str(folder), "--seed", str(seed))
    seconds = time.perf_counter() - begin
    checkpoint = re.findall(r"^trained: (.+)$", printed, re.MULTILINE)[-1]
    found = {
        "before": before,
        "after": measure(name, (checkpoint,), seed),
        "seconds": seconds,
        "iterations": int(re.findall(r"iter_(\d+)", checkpoint)[-1]),
        "megabytes": Path(checkpoint).stat().st_size / 1e6,
        "commit": commit(),
    }
    record.write_text(json.dumps(found, indent=1))
    return found


def measure(name: str, checkpoint: tuple[str, ...], seed: int) -> list[float]:
    """The config's figures on its test split, with a checkpoint or untrained."""
    printed: dict[tuple[str, ...], str] = {}
    values = []
    for figure in CONFIGS[name]:
        if figure.options not in printed:
            options = (f"randomness.seed={seed}", *figure.options)
            printed[figure.options] = run(
                "tools/test.py", f"configs/{name}.py", *checkpoint, "--cfg-options", *options
            )
        line = printed[figure.options].strip().splitlines()[-1]
        values.append(float(re.findall(rf"(?:^|[\s/]){re.escape(figure.name)} ([-\d.]+)", line)[0]))
    return values


def table(
    names: Sequence[str], seeds: Sequence[int], found: dict[tuple[str, int], dict[str, Any]], pictures: bool
) -> list[str]:
    """Lines for a page: a row for each config and figure."""
    heads = ["config", "figure", *(f"seed {seed}: before, after" for seed in seeds), "iterations", "seconds"]
    heads += ["curve"] if pictures else []
    rows = []
    for name in names:
        for index, figure in enumerate(CONFIGS[name]):
            runs = [found[name, seed] for seed in seeds]
            pairs = [f"{each['before'][index]:.1f}, **{each['after'][index]:.1f}**" for each in runs]
            first = index == 0
            costs = [str(runs[0]["iterations"]), ", ".join(f"{each['seconds']:.0f}" for each in runs)]
            picture = [f"[picture](images/{picture_of(name)})" if first else ""] if pictures else []
            rows.append(
                [
                    f"`{name}`" if first else "",
                    figure.called,
                    *pairs,
                    *(costs if first else ("", "")),
                    *picture,
                ]
            )
    commits = ", ".join(sorted({each["commit"] for each in found.values()}))
    return [
        *markdown_table(heads, rows, left=2),
        "",
        f"Held-out scenes of each config's test split; percent, but for MAE. Seconds: `tools/train.py` from "
        f"start to end with its validations, torch threads: {os.environ['OMP_NUM_THREADS']}, and a worker "
        f"that draws. Commit {commits}.",
    ]


def folder_of(name: str, seed: int, keep: Path) -> Path:
    """The work dir of a run."""
    return keep.absolute() / f"{Path(name).name}-{seed}"


def picture_of(name: str) -> str:
    """The file of a curve."""
    return f"training-{Path(name).parent.name}.png"


if __name__ == "__main__":
    sys.exit(main())
