"""Measure how good a method is: an OpenMMLab config on its dataset, or methods by name on held-out scenes.

Thin on purpose: arguments and tables here, the work in `ovseg.mm`.
"""

from __future__ import annotations

import argparse
import ast
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovseg.mm.scenes_benchmark import SceneScores

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """\
on a dataset (its files as in docs/datasets.md; training-free methods need no checkpoint):
  python tools/test.py configs/sclip/sclip_vitb16_voc21.py
  python tools/test.py configs/naclip/naclip_vitb16_ade20k.py --limit 50 --show-dir out/pictures
  python tools/test.py configs/sclip/sclip_vitb16_voc21.py --cfg-options model.method.temperature=50
  torchrun --nproc-per-node 4 tools/test.py configs/clip/clip_vitb16_voc20.py --launcher pytorch

on scenes, drawn on the fly, no files needed (settings: configs/<method>/<method>_bundled_scenes.py):
  python tools/test.py clip maskclip sclip clearclip naclip
  python tools/test.py naclip --split val --seeds 0 --cfg-options model.method.stride=64     (tune on val)
  python tools/test.py sclip --split compositions --per-class
  python tools/test.py clip maskclip sclip clearclip naclip --write docs/results.md

exit status: 0 measured, 2 wrong usage or missing files, 130 stopped with Ctrl-C.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="test.py",
        description="Measure mIoU: of a config on its dataset, or of methods by name on held-out scenes.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what",
        nargs="+",
        metavar="CONFIG [CKPT] | METHOD",
        help="a config (.py) and its checkpoint, or methods",
    )
    both = parser.add_argument_group("both")
    both.add_argument(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change the config, as model.method.temperature=50 or model.encoder=clip_vitb16_laion2b",
    )
    both.add_argument(
        "--limit", type=int, help="only the first so many images of the dataset, or of each seed"
    )
    config = parser.add_argument_group("a config")
    config.add_argument("--work-dir", type=Path, help="folder for logs (default: work_dirs/<config>)")
    config.add_argument(
        "--out", type=Path, help="folder for predicted labels, as PNG in the dataset's numbers"
    )
    config.add_argument("--show-dir", type=Path, help="folder for pictures of the results")
    config.add_argument("--launcher", default="none", choices=("none", "pytorch", "slurm", "mpi"))
    config.add_argument("--local-rank", "--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    scenes = parser.add_argument_group("methods on scenes")
    scenes.add_argument(
        "--split",
        "--scenes-split",
        default="test",
        help="test, val, pairs, compositions, unseen ... (default: test)",
    )
    scenes.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="sets of scenes (default: 0 1 2)"
    )
    scenes.add_argument("--num-scenes", type=int, default=64, help="scenes of each seed (default: 64)")
    scenes.add_argument("--encoder", help="instead of the bundled one")
    scenes.add_argument("--weights", help="a local weights file")
    scenes.add_argument("--short-side", type=int, help="resize scenes to this short side, for every method")
    scenes.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    scenes.add_argument("--dtype", default="float32", choices=("float32", "bf16", "fp16"))
    scenes.add_argument("--per-class", action="store_true", help="also the IoU of every class")
    scenes.add_argument("--write", type=Path, metavar="FILE", help="replace the table in this Markdown file")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    given = sys.argv[1:] if argv is None else argv
    arguments = build_parser().parse_args(given)
    from ovseg.errors import OvsegError

    try:
        options = parse_options(arguments.cfg_options)
        if any(each.endswith(".py") for each in arguments.what):
            return test_config(arguments, options)
        return test_methods(arguments, options, given)
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped: nothing was measured", file=sys.stderr)
        return 130


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` pairs; a value is a Python literal, else text."""
    from ovseg.errors import ConfigError

    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--cfg-options takes KEY=VALUE, got '{pair}'")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options


def test_config(arguments: argparse.Namespace, options: dict[str, Any]) -> int:
    """A config through mmengine's Runner."""
    from ovseg.errors import ConfigError
    from ovseg.mm import load_config
    from ovseg.mm.runner import prepare, run_test

    path, *rest = arguments.what
    if not path.endswith(".py") or len(rest) > 1 or any(each.endswith(".py") for each in rest):
        raise ConfigError(
            f"expected one config and at most one checkpoint, or methods; got {' '.join(arguments.what)}"
        )
    if arguments.write:
        raise ConfigError("--write is for methods on scenes, not for a config")
    os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    config = prepare(
        load_config(path, options),
        work_dir=arguments.work_dir or Path("work_dirs") / Path(path).stem,
        out=arguments.out,
        show_dir=arguments.show_dir,
        limit=arguments.limit,
        launcher=arguments.launcher,
    )
    metrics = run_test(config, rest[0] if rest else None)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"{Path(path).stem}: " + "  ".join(f"{name} {value:.2f}" for name, value in metrics.items()))
    return 0


def test_methods(arguments: argparse.Namespace, options: dict[str, Any], argv: list[str]) -> int:
    """Methods by name on scenes."""
    from ovseg.errors import unknown_name
    from ovseg.methods import METHODS
    from ovseg.mm import load_config
    from ovseg.mm.scenes_benchmark import score_on_scenes

    for method in arguments.what:
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
    if arguments.write:
        read_markers(arguments.write)  # before the work
    if arguments.short_side is not None:
        options["model.method.short_side"] = arguments.short_side
    found = []
    for method in dict.fromkeys(arguments.what):
        config = load_config(ROOT / "configs" / method / f"{method}_bundled_scenes.py", options)
        scores = score_on_scenes(
            config,
            split=arguments.split,
            seeds=arguments.seeds,
            num_scenes=arguments.num_scenes if arguments.limit is None else arguments.limit,
            encoder=arguments.encoder,
            weights=arguments.weights,
            device=arguments.device,
            dtype=arguments.dtype,
        )
        if scores.notice and not found:
            print(scores.notice, file=sys.stderr)
        found.append(scores)
        print(f"{method}: mIoU {percent(scores.mean_iou)}", file=sys.stderr)
    print("\n".join(table(found)))
    if arguments.per_class:
        print("\n" + "\n".join(class_table(found)))
    if arguments.write:
        write_section(arguments.write, section(found, arguments, argv))
        print(f"\nwritten to {arguments.write}")
    return 0


def percent(mean_and_spread: tuple[float, float]) -> str:
    mean, spread = mean_and_spread
    return f"{100 * mean:.1f} ± {100 * spread:.1f}"


def table(found: list[SceneScores]) -> list[str]:
    """Figures by method, as Markdown."""
    rows = ["| method | mIoU (%) | pixel accuracy (%) | ms per image |", "|---|---:|---:|---:|"]
    for scores in found:
        cells = (
            scores.method,
            percent(scores.mean_iou),
            percent(scores.pixel_accuracy),
            f"{1000 * scores.seconds_per_image:.0f}",
        )
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def class_table(found: list[SceneScores]) -> list[str]:
    """IoU of every class, by method."""
    rows = [
        "| class | " + " | ".join(scores.method for scores in found) + " |",
        "|---|" + "---:|" * len(found),
    ]
    for index, name in enumerate(found[0].classes):
        values = [scores.per_class[index] for scores in found]
        cells = " | ".join("–" if math.isnan(value) else f"{100 * value:.1f}" for value in values)
        rows.append(f"| {name} | {cells} |")
    return rows


BEGIN, END = "<!-- begin: scenes (written by tools/test.py) -->", "<!-- end: scenes -->"


def section(found: list[SceneScores], arguments: argparse.Namespace, argv: list[str]) -> list[str]:
    """What goes between the markers."""
    described = found[0].describe
    seeds = ", ".join(str(seed) for seed in arguments.seeds)
    versions = ", ".join(f"{name} {version}" for name, version in described["versions"].items())
    count = arguments.num_scenes if arguments.limit is None else arguments.limit
    return [
        *table(found),
        "",
        f"Split `{arguments.split}`, {len(found[0].classes)} classes, {count} scenes of each seed ({seeds}); "
        f"mean ± standard deviation over the seeds. Encoder `{described['encoder']}`, weights sha256 "
        f"`{str(described['weights_sha256'])[:16]}`. Times on {device_name(arguments.device)}, without "
        f"drawing the scene and encoding the words.",
        "",
        "```bash",
        f"python tools/test.py {shlex.join(argv)}",
        "```",
        "",
        f"Commit {commit()}; {versions}.",
    ]


def device_name(device: str) -> str:
    import torch

    from ovseg.inferencer import resolve_device

    resolved = resolve_device(device)
    if resolved.type == "cuda":
        return torch.cuda.get_device_name(resolved)
    return f"{resolved.type.upper()} (torch threads: {torch.get_num_threads()})"


def commit() -> str:
    """The checkout's commit, and whether tracked files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "ovseg", "configs", "tools")
        return f"`{git('rev-parse', '--short=12', 'HEAD').strip()}`" + (
            " with local changes" if changed.strip() else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git checkout)"


def read_markers(path: Path) -> tuple[str, str]:
    """What stands before and after the section; a new file gets a heading."""
    from ovseg.errors import ConfigError

    if not path.exists():
        return "# Results\n\n" + BEGIN + "\n", "\n" + END + "\n"
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{path} has no place for the table: put these two lines into it\n{BEGIN}\n{END}")
    return before + BEGIN + "\n", "\n" + END + after


def write_section(path: Path, lines: list[str]) -> None:
    """Replaces what stands between the markers."""
    before, after = read_markers(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(before + "\n" + "\n".join(lines) + "\n" + after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
