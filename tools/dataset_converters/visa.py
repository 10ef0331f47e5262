"""VisA in the layout of MVTec AD, for tools that know only that one.

ovseg reads VisA as it is downloaded, too. Images are linked where the file system can, masks become 0 and
255.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from ovseg.prepare.conversion import Converted, add_jobs, convert_all, make_parser, run_tool
from ovseg.prepare.visa import SPLIT_FILE, convert_row, read_split

EXAMPLES = """\
  python tools/dataset_converters/visa.py data/visa -o data/visa_1cls
"""


def convert(arguments: argparse.Namespace) -> Converted:
    rows = read_split(arguments.source / arguments.split_file)
    work = partial(convert_row, root=arguments.source, out=arguments.out)
    problems = convert_all(work, rows, jobs=arguments.jobs, name="visa")
    return Converted(len(rows), problems, arguments.out)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("visa.py", "VisA in the layout of MVTec AD, split by its split file.", EXAMPLES)
    parser.add_argument("source", type=Path, help="folder of VisA: split_csv/, candle/Data/Images/ ...")
    parser.add_argument("-o", "--out", type=Path, required=True, help="the new folder")
    parser.add_argument("--split-file", default=SPLIT_FILE, help=f"below the source (default: {SPLIT_FILE})")
    add_jobs(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return run_tool(lambda: convert(arguments))


if __name__ == "__main__":
    sys.exit(main())
