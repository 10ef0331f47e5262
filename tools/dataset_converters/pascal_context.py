"""Labels of Pascal Context (0 background, 1 to 59 classes) and its lists of images, in mmseg's layout.

From trainval_merged.json, as the benchmark is made (the detail API is not needed), or from the .mat files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ovseg.errors import ConfigError
from ovseg.prepare.conversion import Converted, add_jobs, convert_all, make_parser, run_tool
from ovseg.prepare.pascal_context import (
    LABELS,
    convert_masks,
    convert_matrix,
    read_detail,
    read_matrices,
    write_lists,
)

EXAMPLES = """\
  python tools/dataset_converters/pascal_context.py data/VOCdevkit/VOC2010/trainval_merged.json
  python tools/dataset_converters/pascal_context.py downloads/trainval -o data/VOCdevkit/VOC2010      (.mat)
"""


def convert(arguments: argparse.Namespace) -> Converted:
    source, out = arguments.source, arguments.out or arguments.source.parent
    if not source.exists():
        raise ConfigError(
            f"no {source}: expected Pascal Context's trainval_merged.json, or the folder of .mat files of "
            f"its trainval.tar.gz (docs/datasets.md)"
        )
    if source.is_dir():
        matrices, names = read_matrices(source, out)
        total = len(matrices)
        problems = convert_all(convert_matrix, matrices, jobs=arguments.jobs, name=LABELS)
    else:
        masks, names = read_detail(source, out)
        total = len(masks)
        problems = convert_all(convert_masks, masks, jobs=arguments.jobs, name=LABELS)
    write_lists(names, out)
    return Converted(total, problems, out / LABELS)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "pascal_context.py", "Labels and lists of Pascal Context, with 59 classes and background.", EXAMPLES
    )
    parser.add_argument("source", type=Path, help="trainval_merged.json, or a folder of .mat files")
    parser.add_argument("-o", "--out", type=Path, help="the folder VOC2010 (default: the source's folder)")
    add_jobs(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return run_tool(lambda: convert(arguments))


if __name__ == "__main__":
    sys.exit(main())
