"""Time and memory: methods against the bare forwards of their encoders, heads, labels at full size."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SUITES = {name: ROOT / "benchmarks" / f"{name}.py" for name in ("methods", "heads", "labels")}
EXAMPLES = """\
  python tools/benchmark.py                                 every method, with a GPU where there is one
  python tools/benchmark.py --methods trident proxyclip --device cpu --threads 2 --write docs/speed.md
  python tools/benchmark.py --dtype bf16 --device cpu       beside it, what bf16 brings a bare ViT-B/16
  python tools/benchmark.py --suite heads --device cpu --threads 2 --write docs/speed.md
  python tools/benchmark.py --suite labels --size 1000 1500

Weights are random and of the published architectures: nothing is downloaded. Each method runs in a process of
its own.

exit status: 0 measured, 1 a method could not be measured, 2 wrong usage.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py",
        description="Measure time, peak memory and the ratio to the floor.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", choices=tuple(SUITES), default="methods", help="what to measure")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="which (default: all)")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="of the image in pixels (default: 375 500)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bf16", "fp16"))
    parser.add_argument(
        "--refine", default="none", help="none, own (the method's), pamr, sam ... (default: none)"
    )
    parser.add_argument("--compile", action="store_true", help="let torch compile the transformer blocks")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--repeats", type=int, default=3, help="passes; the median counts (default: 3)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the table in this Markdown file")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    given = sys.argv[1:] if argv is None else argv
    arguments = build_parser().parse_args(given)
    from ovseg.errors import OvsegError

    try:
        if arguments.suite == "labels":
            return bench_labels(arguments)
        if arguments.suite == "heads":
            return bench_heads(arguments, given)
        return bench_methods(arguments, given)
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def bench_labels(arguments: argparse.Namespace) -> int:
    """Labels at full size, by `benchmarks/labels.py`."""
    size = [] if arguments.size is None else ["--size", *map(str, arguments.size)]
    command = [sys.executable, str(SUITES["labels"]), *size, "--repeats", str(arguments.repeats)]
    return subprocess.run(command, check=False).returncode


def bench_heads(arguments: argparse.Namespace, argv: list[str]) -> int:
    """Four tasks, other words, many classes, by `benchmarks/heads.py`."""
    from ovseg.devices import resolve_device
    from ovseg.pages import PageSection, markdown_table

    device = resolve_device(arguments.device)
    place = PageSection(f"heads-{device.type}", "tools/benchmark.py")
    if arguments.write:
        place.around(arguments.write)  # before the work
    common = {"repeats": arguments.repeats, "threads": arguments.threads, "tiny": arguments.tiny}
    size_hw = arguments.size or (375, 500)
    tasks = run_case({"case": "tasks", "size_hw": size_hw, "device": str(device), **common}, "heads")
    large_hw = (100, 150) if arguments.tiny else (1000, 1500)
    sizes = {
        number: run_case({"case": "classes", "size_hw": large_hw, "classes": number, **common}, "heads")
        for number in (80, 1203)
    }
    few, many = sizes[80], sizes[1203]
    if tasks is None or few is None or many is None:
        return 1
    whole = tasks["segment"]
    more = many["extra_mb"] - few["extra_mb"]
    rows = [
        ("encode, segment", f"{whole:.3g} s", "1"),
        ("encode, four tasks", f"{tasks['four']:.3g} s", f"{tasks['four'] / whole:.3f}"),
        ("cached, segment with other words", f"{tasks['again']:.3g} s", f"{tasks['again'] / whole:.3f}"),
        ("detection of 80 classes, extra peak", f"{few['extra_mb']:.0f} MB", ""),
        ("detection of 1,203 classes, extra peak", f"{many['extra_mb']:.0f} MB", f"{more:+.0f} MB"),
    ]
    lines = [
        *markdown_table(["what", "costs", "ratio, difference"], rows),
        "",
        f"SCLIP with ViT-B/16 (random weights), 20 encoded classes, one image of "
        f"{size_hw[0]} x {size_hw[1]} (HxW); detection on 1000 x 1500. The four tasks: segment, detect, "
        f"anomaly, count. Median of {arguments.repeats}, in turns.",
        *made_by(argv, str(device), arguments.threads),
    ]
    print("\n".join(lines))
    if arguments.write:
        place.write(arguments.write, lines)
        print(f"\nwritten to {arguments.write}")
    return 0


def bench_methods(arguments: argparse.Namespace, argv: list[str]) -> int:
    """Every method against its floor."""
    from ovseg.devices import resolve_device, resolve_dtype
    from ovseg.errors import ConfigError, unknown_name
    from ovseg.methods import METHODS
    from ovseg.pages import PageSection
    from ovseg.parts import refinement_names

    methods = list(dict.fromkeys(arguments.methods or METHODS))
    for method in methods:
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
    if arguments.repeats < 1:
        raise ConfigError(f"--repeats must be at least 1, got {arguments.repeats}")
    if arguments.refine != "own":
        refinement_names(arguments.refine)
    device = resolve_device(arguments.device)
    resolve_dtype(arguments.dtype, device)
    way = f"{device.type}-{arguments.dtype}{'-compiled' if arguments.compile else ''}"
    place = PageSection(f"methods-{way}", "tools/benchmark.py")
    if arguments.write:
        place.around(arguments.write)  # before the work
    settings = {
        "size_hw": arguments.size or (375, 500),
        "device": str(device),
        "dtype": arguments.dtype,
        "refine": arguments.refine,
        "repeats": arguments.repeats,
        "threads": arguments.threads,
        "compile": arguments.compile,
        "tiny": arguments.tiny,
    }
    found = {}
    for method in methods:
        if (figures := run_case({"method": method, **settings})) is not None:
            found[method] = figures
            print(f"{method}: {figures['seconds']:.2f} s, {figures['ratio']:.2f} x floor", file=sys.stderr)
    bare = run_case({"method": "bare", **settings}) if arguments.dtype != "float32" else None
    if found:
        lines = report(found, bare, arguments, settings, argv)
        print("\n".join(lines))
        if arguments.write:
            place.write(arguments.write, lines)
            print(f"\nwritten to {arguments.write}")
    return 0 if len(found) == len(methods) else 1


def run_case(case: dict[str, Any], suite: str = "methods") -> dict[str, float] | None:
    """A case in a process of its own; None, with its last words on stderr, where it fails."""
    command = [sys.executable, str(SUITES[suite]), json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        print(f"{case.get('method', case)} could not be measured: {last}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def report(
    found: dict[str, dict[str, float]],
    bare: dict[str, float] | None,
    arguments: argparse.Namespace,
    settings: dict[str, Any],
    argv: list[str],
) -> list[str]:
    """The table and what must be said beside it."""
    from ovseg.pages import markdown_table

    heads = ["method", "windows", "pass, s", "floor, s", "ratio", "extra peak, MB"]
    rows = [
        (
            method,
            f"{each['windows']:.0f}",
            f"{each['seconds']:.3g}",
            f"{each['floor_seconds']:.3g}",
            f"{each['ratio']:.2f}",
            f"{each['extra_mb']:.0f}",
        )
        for method, each in found.items()
    ]
    height, width = settings["size_hw"]
    compiled = ", blocks compiled" if arguments.compile else ""
    said = (
        f"One image of {height} x {width} (HxW), random weights, VOC settings, {arguments.dtype}{compiled}, "
        f"refinement: {arguments.refine}; median of {arguments.repeats}. Floor: bare forwards of the same "
        f"encoders on the same windows by their own libraries, in turns with the passes. Extra peak: above "
        f"the loaded models. CorrCLIP is given its regions."
    )
    lines = [*markdown_table(heads, rows), "", said]
    if bare is not None:
        lines += [
            "",
            f"A bare forward of ViT-B/16 on eight images of 224 x 224: {bare['float32_seconds']:.3g} s in "
            f"float32, {bare['seconds']:.3g} s in {arguments.dtype}, {bare['speedup']:.2f} x as fast.",
        ]
    return [*lines, *made_by(argv, settings["device"], arguments.threads)]


def made_by(argv: list[str], device: str, threads: int | None) -> list[str]:
    """Machine, command, commit and versions."""
    import open_clip
    import timm
    import torch

    from ovseg.pages import commit, device_name

    if threads and device == "cpu":
        torch.set_num_threads(threads)
    versions = f"torch {torch.__version__}, open_clip {open_clip.__version__}, timm {timm.__version__}"
    command = f"python tools/benchmark.py {shlex.join(argv)}".strip()
    said = f"On {device_name(device)}; commit {commit()}; {versions}."
    return ["", "```bash", command, "```", "", said]


if __name__ == "__main__":
    sys.exit(main())
