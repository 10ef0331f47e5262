"""Operations that an image costs, counted, and what many images would take on a GPU by that count.

    python benchmarks/flops.py
    python benchmarks/flops.py --images 1e9 --utilisation 0.2 --price L4=0.7 A100=2.5 --write docs/scaling.md

Methods at their defaults on an image of 375 x 500, networks of the published shapes with random weights,
counted by torch.utils.flop_counter; a multiplication and an addition are two operations.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.sam import SamEncoder
from ovseg.encoders.weights import find_part
from ovseg.images import read_image
from ovseg.methods import PUBLISHED_PARTS, build_method
from ovseg.outputs.label_files import write_labels
from ovseg.pages import PageSection, commit, device_name, markdown_table
from ovseg.scorer import Scorer

#: Dense bf16 peak in operations a second, by NVIDIA's data sheets. Those of L4 (242 TFLOPS) and H100 SXM
#: (1,979) are with 2:4 sparsity, twice these; A100's is without.
GPUS = {"L4": 121e12, "A100": 312e12, "H100 SXM": 989e12}
TOWERS = {"ViT-B/16": (16, 768, 12, 12, 512), "ViT-L/14": (14, 1024, 24, 16, 768)}
CASES = (
    ("maskclip", "ViT-B/16"),
    ("sclip", "ViT-B/16"),
    ("sclip", "ViT-L/14"),
    ("proxyclip", "ViT-B/16"),
    ("trident", "ViT-B/16"),
)
SIZE_HW = (375, 500)


def clip_tower(name: str) -> ClipEncoder:
    """A published shape, random weights."""
    patch, width, layers, heads, dim = TOWERS[name]
    tower = VisionTransformer(
        image_size=224, patch_size=patch, width=width, layers=layers, heads=heads, mlp_ratio=4.0,
        output_dim=dim, act_layer=QuickGELU,
    )  # fmt: skip
    return ClipEncoder(tower.requires_grad_(False)).eval()


def published_parts(method: str) -> dict[str, torch.nn.Module]:
    """What a method was published with beside CLIP, random weights."""
    found: dict[str, torch.nn.Module] = {}
    for part, name in PUBLISHED_PARTS.get(method, {}).items():
        if part == "sam":
            from segment_anything import sam_model_registry

            found[part] = SamEncoder(sam_model_registry[name.removeprefix("sam_").replace("vit", "vit_")]())
        else:
            found[part] = DinoEncoder(timm.create_model(find_part(name, "dino").architecture, num_classes=0))
    return {part: module.eval().requires_grad_(False) for part, module in found.items()}


@torch.no_grad()
def count(work: Callable[[], Any]) -> int:
    """Operations of a call."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(
        False
    )  # attention as one operation, which the counter takes for none
    try:
        with FlopCounterMode(display=False) as counter:
            work()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops()


def operations(method: str, tower: str, size_hw: tuple[int, int] = SIZE_HW) -> int:
    """Of one image's encoding at the method's defaults, on the device "meta": shapes without values.

    Words and labels come on top: under 1 % in every case here.
    """
    scorer: Scorer = build_method(method, clip_tower(tower), **published_parts(method)).eval()
    pictures = scorer.prepare([np.zeros((*size_hw, 3), np.uint8)])
    pictures = replace(pictures, image=pictures.image.to("meta"))
    scorer = scorer.to("meta")
    return count(lambda: scorer.encode(pictures, size_hw))


def gpu_hours(images: float, flops: float, peak: float, utilisation: float) -> float:
    """`images * flops / (peak * utilisation)`, in hours."""
    return images * flops / (peak * utilisation) / 3600


def host_seconds(repeats: int = 20) -> tuple[float, float]:
    """Of one core: a JPEG of 375 x 500 decoded, and a label image of that size written as PNG."""
    from ovseg.results import Segmentation

    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    stream = io.BytesIO()
    picture = Image.fromarray(coarse).resize((SIZE_HW[1], SIZE_HW[0]), Image.Resampling.BICUBIC)
    picture.save(stream, "JPEG", quality=90)
    labels = np.array(picture.convert("L")) // 13
    result = Segmentation(labels, tuple(f"class {k}" for k in range(20)), np.ones(SIZE_HW, np.float32))
    reading = [_seconds(partial(read_image, stream.getvalue())) for _ in range(repeats)]
    writing = [_seconds(lambda: write_labels(io.BytesIO(), result)) for _ in range(repeats)]
    return median(reading), median(writing)


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def estimate(
    counted: Mapping[tuple[str, str], int],
    images: float,
    utilisation: float,
    prices: Mapping[str, float],
    host: tuple[float, float],
) -> list[str]:
    """Lines of the page."""
    heads = [
        "method",
        "encoder",
        "image side, GFLOP",
        *(f"{g}, h" for g in GPUS),
    ]
    heads += [f"{name}, at {price:g} an hour" for name, price in prices.items()]
    rows = []
    for (method, tower), flops in counted.items():
        hours = {name: gpu_hours(images, flops, peak, utilisation) for name, peak in GPUS.items()}
        cells = [method, tower, f"{flops / 1e9:,.1f}"]
        cells += [f"{each:,.1f}" for each in hours.values()]
        rows.append([*cells, *(f"{price * hours[name]:,.0f}" for name, price in prices.items())])
    (first, tower), flops = next(iter(counted.items()))
    peak = GPUS["A100"]
    cores = {name: peak * utilisation / flops * sum(host) for name, peak in GPUS.items()}
    return [
        *markdown_table(heads, rows, left=2),
        "",
        f"{images:,.0f} images of {SIZE_HW[0]} x {SIZE_HW[1]}, utilisation {utilisation:g}. "
        f"{first} with {tower} on an A100: "
        f"{images:.3g} images x {flops:.3g} FLOP / ({peak:.3g} FLOP/s x {utilisation:g}) / 3600 s = "
        f"{gpu_hours(images, flops, peak, utilisation):,.1f} h.",
        "",
        f"One core decodes such a JPEG in {1000 * host[0]:.1f} ms and writes its labels as PNG in "
        f"{1000 * host[1]:.1f} ms, measured here. To keep up with {first}, "
        + ", ".join(f"{name} needs {number:.0f}" for name, number in cores.items())
        + " such cores.",
        "",
        f"Counted and measured on {device_name('cpu')}, torch {torch.__version__}, commit {commit()}.",
    ]


def parse_prices(pairs: Sequence[str]) -> dict[str, float]:
    """`GPU=PRICE` of an hour."""
    found = {}
    for pair in pairs:
        name, equals, price = pair.partition("=")
        if name not in GPUS or not equals:
            raise SystemExit(f"error: --price got '{pair}': expected GPU=PRICE with one of {', '.join(GPUS)}")
        found[name] = float(price)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Count, print, and where asked write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=float, default=1e7)
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of the peak that is reached")
    parser.add_argument("--price", nargs="+", default=[], metavar="GPU=PRICE", help="of an hour")
    parser.add_argument("--methods", nargs="+", default=[method for method, _ in CASES])
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in this page")
    arguments = parser.parse_args(argv)
    prices = parse_prices(arguments.price)
    cases = [case for case in CASES if case[0] in arguments.methods]
    counted = {case: operations(*case) for case in cases}
    lines = estimate(counted, arguments.images, arguments.utilisation, prices, host_seconds())
    print("\n".join(lines))
    if arguments.write:
        PageSection("estimate", "benchmarks/flops.py").write(arguments.write, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
