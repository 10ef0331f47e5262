"""Images a second on this machine, and how the cost grows with pixels, windows, classes and workers.

    python benchmarks/scaling.py                                        (prints all tables)
    python benchmarks/scaling.py --write docs/scaling.md --pictures docs/images
    python benchmarks/scaling.py --parts classes workers --threads 2

Bundled models, and ViT-B/16 of random weights (time does not depend on them); nothing is downloaded. Within a
part all rows take turns, round by round, and ratios are medians over rounds: a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, VisionTransformer

from ovseg import Inferencer
from ovseg.devices import DTYPES
from ovseg.encoders.clip import ClipEncoder
from ovseg.heads import SegmentationHead
from ovseg.images import read_image
from ovseg.methods import build_method
from ovseg.pages import PageSection, commit, device_name, markdown_table
from ovseg.structures import TextBank

ROOT = Path(__file__).resolve().parents[1]
PHOTO = ROOT / "demo" / "images" / "picnic.jpg"
WORDS = "bear, orange, potted plant, boat, laptop, hot dog, grass"
#: Settings of the bundled models, as in their configs.
SMALL: dict[str, Any] = {"encoder": "bundled", "device": "cpu", "short_side": 224, "crop": 112, "stride": 48}


@dataclass(frozen=True)
class Series:
    """A curve: what was varied, and seconds for each value."""

    name: str
    values: tuple[float, ...]
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Part:
    """What one part of the page holds: a table, and curves where something grows."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: int
    axes: tuple[str, str] = ("", "")
    curves: tuple[Series, ...] = ()


def in_turns(works: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
    """Seconds of each work in each round; a first round that warms up does not count."""
    seconds: dict[Any, list[float]] = {key: [] for key in works}
    for number in range(rounds + 1):
        for key, work in works.items():
            start = time.perf_counter()
            work()
            if number:
                seconds[key].append(time.perf_counter() - start)
    return seconds


def clip_b16(image_px: int = 224) -> ClipEncoder:
    """CLIP's ViT-B/16 of random weights."""
    tower = VisionTransformer(
        image_size=image_px, patch_size=16, width=768, layers=12, heads=12, mlp_ratio=4.0,
        output_dim=512, act_layer=QuickGELU,
    )  # fmt: skip
    return ClipEncoder(tower.requires_grad_(False)).eval()


def words(classes: int, dim: int) -> TextBank:
    """Random words, one for each class."""
    embeddings = F.normalize(torch.randn(classes, dim, generator=torch.Generator().manual_seed(0)), dim=1)
    return TextBank(embeddings, torch.arange(classes), tuple(f"class {k}" for k in range(classes)))


def noise(height: int, width: int) -> np.ndarray:
    """An image."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


@torch.inference_mode()
def throughput(rounds: int, batches: Sequence[int] = (1, 4)) -> Part:
    """From images to labels, by method, encoder, dtype and batch."""
    works: dict[tuple[str, str, str, int], Callable[[], Any]] = {}
    photo = read_image(PHOTO)
    for method, dtype in product(("maskclip", "proxyclip", "trident"), ("float32", "bf16")):
        ask = Inferencer(method, dtype=dtype, **SMALL)
        for batch in batches:
            works[method, "bundled", dtype, batch] = partial(
                lambda ask, batch: list(ask([photo] * batch, WORDS, batch_size=batch)), ask, batch
            )
    image, head, bank = noise(375, 500), SegmentationHead(), words(21, 512)
    for dtype in ("float32", "bf16"):
        encoder = clip_b16()
        encoder.cast(DTYPES[dtype])
        scorer = build_method("sclip", encoder).eval()
        for batch in batches:
            works["sclip", "ViT-B/16", dtype, batch] = partial(
                lambda scorer, batch: head(scorer(scorer.prepare([image] * batch), bank, image.shape[:2])),
                scorer,
                batch,
            )
    seconds = in_turns(works, rounds)
    rows = []
    for key, taken in seconds.items():
        method, encoder_name, dtype, batch = key
        plain = seconds[method, encoder_name, "float32", 1]
        speedup = median(batch * one / each for one, each in zip(plain, taken, strict=True))
        figures = (f"{batch / median(taken):.2f}", f"{speedup:.2f}")
        rows.append((method, encoder_name, dtype, str(batch), *figures))
    heads = ("method", "encoder", "dtype", "batch", "images/s", "against float32, batch 1")
    return Part(heads, tuple(rows), 3)


@torch.inference_mode()
def pixels(rounds: int, sides: Sequence[int] = (224, 336, 448, 560)) -> Part:
    """The image side of ViT-B/16 on square images, as one window and in windows of 224 px by steps of 112."""
    encoder = clip_b16()
    scorers = {
        "one window": build_method("sclip", encoder, short_side=None, crop=None, stride=None).eval(),
        "windows of 224": build_method("sclip", encoder, short_side=None).eval(),
    }
    works = {
        (name, side): partial(
            lambda scorer, image: scorer.encode(scorer.prepare([image])), scorer, noise(side, side)
        )
        for (name, scorer), side in product(scorers.items(), sides)
    }
    seconds = in_turns(works, rounds)
    heads = ("image", "Mpx", *(f"{name}, s" for name in scorers))
    rows = [
        (f"{side} x {side}", f"{side**2 / 1e6:.2f}", *(f"{median(seconds[n, side]):.2f}" for n in scorers))
        for side in sides
    ]
    axes = ("megapixels", "seconds")
    return Part(heads, tuple(rows), 1, axes, _curves(seconds, scorers, sides, lambda side: side**2 / 1e6))


@torch.inference_mode()
def windows(rounds: int, strides: Sequence[int] = (112, 80, 64, 48, 32)) -> Part:
    """The image side with ever closer windows, bundled models."""
    photo = read_image(PHOTO)
    works, number = {}, {}
    for method, stride in product(("maskclip", "proxyclip"), strides):
        scorer = Inferencer(method, **SMALL | {"stride": stride}).scorer
        picture = scorer.prepare([photo])
        height, width = picture.image.shape[-2:]
        laid = scorer.windows.windows((height, width), scorer.encoder.patch_hw)
        number[stride] = len(laid.boxes_yxyx)
        works[method, stride] = partial(scorer.encode, picture)
    seconds = in_turns(works, rounds)
    heads = ("windows", "maskclip, ms", "each", "proxyclip, ms", "each")
    rows = []
    for stride, count in number.items():
        taken = [1000 * median(seconds[method, stride]) for method in ("maskclip", "proxyclip")]
        rows.append((str(count), *(f"{figure:.1f}" for ms in taken for figure in (ms, ms / count))))
    curves = _curves(seconds, ("maskclip", "proxyclip"), strides, number.__getitem__)
    return Part(heads, tuple(rows), 1, ("windows", "seconds"), curves)


@torch.inference_mode()
def classes(rounds: int, numbers: Sequence[int] = (10, 30, 100, 300, 1000)) -> Part:
    """From features to labels: what words cost once an image is encoded, for images of several sizes."""
    scorer, head = build_method("sclip", clip_b16()).eval(), SegmentationHead()
    sizes = ((375, 500), (750, 1000))
    features = {f"{h} x {w}": scorer.encode(scorer.prepare([noise(h, w)]), (h, w)) for h, w in sizes}
    banks = {number: words(number, 512) for number in numbers}
    works = {
        (name, number): partial(
            lambda found, bank: head(scorer.refined(scorer.score(found, bank), found)), found, bank
        )
        for (name, found), (number, bank) in product(features.items(), banks.items())
    }
    seconds = in_turns(works, rounds)
    heads = ("classes", *(f"{name}, ms" for name in features))
    rows = [
        (str(number), *(f"{1000 * median(seconds[name, number]):.0f}" for name in features))
        for number in numbers
    ]
    return Part(heads, tuple(rows), 1, ("classes", "seconds"), _curves(seconds, features, numbers, float))


def workers(copies: int) -> Part:
    """Whole runs of tools/infer.py in processes of their own, start included: one, and two shards at once."""
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        for number in range(copies):
            for path in PHOTO.parent.glob("*.jpg"):
                shutil.copy(path, photos / f"{number:04}-{path.name}")
        total = len(list(photos.iterdir()))
        start = _wall(photos, Path(folder) / "start", [["--limit", "1"]])
        alone = _wall(photos, Path(folder) / "one", [[]])
        both = _wall(photos, Path(folder) / "two", [["--shard", "1/2"], ["--shard", "2/2"]])
    rows = tuple(
        (
            str(number),
            f"{wall:.1f}",
            f"{total / wall:.2f}",
            f"{alone / wall:.2f}",
            f"{alone / wall / number:.2f}",
        )
        for number, wall in ((1, alone), (2, both))
    )
    heads = (f"processes ({total} images, start {start:.1f} s)", "s", "images/s", "speed-up", "efficiency")
    curves = (Series("measured", (1, 2), (total / alone, total / both)),)
    return Part(heads, rows, 1, ("processes", "images a second, start included"), curves)


def _wall(photos: Path, out: Path, each: Sequence[Sequence[str]]) -> float:
    """Seconds until all processes are done."""
    common = [sys.executable, str(ROOT / "tools" / "infer.py"), str(photos), "-c", WORDS, "-q"]
    common += ["--method", "proxyclip", "--encoder", "bundled", "--device", "cpu", "--formats", "labels"]
    common += ["--readers", "1", "-o", str(out), "--opts", "short_side=224", "crop=112", "stride=48"]
    threads = str(torch.get_num_threads())
    begin = time.perf_counter()
    started = [
        subprocess.Popen([*common, *given], env=os.environ | {"OMP_NUM_THREADS": threads}) for given in each
    ]
    statuses = [process.wait() for process in started]
    if any(statuses):
        raise SystemExit(f"error: a run failed (exit statuses {statuses})")
    return time.perf_counter() - begin


def _curves(
    seconds: Mapping[Any, Sequence[float]],
    names: Iterable[str],
    values: Sequence[int],
    scale: Callable[[int], float],
) -> tuple[Series, ...]:
    return tuple(
        Series(name, tuple(map(scale, values)), tuple(median(seconds[name, value]) for value in values))
        for name in names
    )


PARTS: dict[str, Callable[[int], Part]] = {
    "throughput": throughput,
    "pixels": pixels,
    "windows": windows,
    "classes": classes,
    "workers": lambda rounds: workers(6 * rounds),
}


def draw(part: Part, target: Path, *, logarithmic: bool = False) -> None:
    """The curves of a part as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    axes = figure.subplots()
    for series in part.curves:
        axes.plot(series.values, series.seconds, marker="o", label=series.name)
    axes.set_xlabel(part.axes[0])
    axes.set_ylabel(part.axes[1])
    if logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and where asked write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3, help="that count, after one that warms up")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each process")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the tables in this page")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw curves into this folder")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    for name in arguments.parts:
        part = PARTS[name](arguments.rounds)
        lines = markdown_table(part.heads, part.rows, left=part.text)
        lines += ["", f"{device_name('cpu')}, torch {torch.__version__}, commit {commit()}."]
        print("\n".join([f"## {name}", "", *lines, ""]), flush=True)
        if arguments.write:
            PageSection(f"scaling-{name}", "benchmarks/scaling.py").write(arguments.write, lines)
        if arguments.pictures and part.curves:
            draw(part, arguments.pictures / f"scaling-{name}.png", logarithmic=name == "classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
