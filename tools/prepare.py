"""Is a data set where configs look for it, and whole? Says what is missing.

Thin on purpose: arguments here, the work in `ovseg.prepare`. `docs/datasets.md` says how to get each.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ovseg.errors import OvsegError

if TYPE_CHECKING:
    from ovseg.prepare.benchmarks import Benchmark
    from ovseg.prepare.report import Report

EXAMPLES = """\
examples:
  python tools/prepare.py list
  python tools/prepare.py check voc21            (in data/VOCdevkit/VOC2012, as in its config)
  python tools/prepare.py check ade20k /mnt/ADEChallengeData2016 --split all
  python tools/prepare.py check coco_object data/coco_object --sample 0      (no file is opened)
  python tools/prepare.py check cityscapes my_cities --subset            (fewer images are no problem)

Exit status: 0 all is there, 1 something is missing or wrong, 2 wrong usage.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prepare.py",
        description="Check data sets: folders, files, pairs of images and labels, values, splits, numbers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{list,check}")
    commands.add_parser("list", help="the data sets, their folders, and what prepares them")
    check = commands.add_parser("check", help="what is missing in a folder")
    check.add_argument("dataset", metavar="DATASET", help="name of its config, see list")
    check.add_argument(
        "root", metavar="ROOT", type=Path, nargs="?", help="its folder (default: where configs look for it)"
    )
    check.add_argument("--split", help="train, val, test or all (default: the one that is reported)")
    check.add_argument(
        *("--sample",),
        type=_whole,
        default=50,
        metavar="N",
        help="open so many files, evenly spaced, and look at what they hold (default: 50)",
    )
    check.add_argument("--subset", action="store_true", help="fewer images than published are no problem")
    return parser


def _whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {number}")
    return number


def show_list() -> None:
    from ovseg.prepare.benchmarks import BENCHMARKS

    rows = [("data set", "folder", "images", "prepared by")]
    for name, each in BENCHMARKS.items():
        images = ", ".join(
            f"{split} {'any' if number is None else format(number, ',')}"
            for split, number in each.images.items()
        )
        rows.append((name, each.layout.root, images, each.prepare or "unpacking"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show(name: str, benchmark: Benchmark, report: Report) -> None:
    print(f"{name}, {report.split}, in {report.root}")
    for count in report.counts:
        print(f"  {count}")
    for note in report.notes:
        print(f"  note: {note}")
    for problem in report.problems:
        print(f"  missing or wrong: {problem}")
    if not report.problems:
        print("  all is there")


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    if arguments.command == "list":
        show_list()
        return 0
    from ovseg.layouts import shown_layout
    from ovseg.prepare.benchmarks import benchmark

    try:
        chosen = benchmark(arguments.dataset)
        root = arguments.root or Path(chosen.layout.root)
        reports = chosen.check(root, arguments.split, sample=arguments.sample, subset=arguments.subset)
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for report in reports:
        show(arguments.dataset, chosen, report)
    if not any(report.problems for report in reports):
        return 0
    print(shown_layout(chosen.layout_of, str(root)))
    print(f"\nprepared by {chosen.prepare or 'unpacking'}; docs/datasets.md says how to get it")
    return 1


if __name__ == "__main__":
    sys.exit(main())
