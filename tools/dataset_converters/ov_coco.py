"""Annotation files of open-vocabulary COCO: base classes to train, all 65 to validate.

`coco_ov` configs need none of them: they read instances_val2017.json and keep the classes. These are for
training on base classes alone, and for other tools, which know the files by these names.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ovseg.errors import ConfigError
from ovseg.prepare.conversion import Converted, add_jobs, convert_all, make_parser, run_tool
from ovseg.prepare.ov_coco import PARTS, SplitFile, convert_file

EXAMPLES = """\
  python tools/dataset_converters/ov_coco.py data/coco
  python tools/dataset_converters/ov_coco.py data/coco --files val2017:unseen        (only the novel classes)
"""


def convert(arguments: argparse.Namespace) -> Converted:
    out = arguments.out or arguments.source / "zero-shot"
    items = []
    for each in arguments.files:
        split, _, part = each.partition(":")
        if part not in PARTS:
            raise ConfigError(f"--files {each}: expected SPLIT:PART, where PART is {', '.join(PARTS)}")
        source = arguments.source / "annotations" / f"instances_{split}.json"
        if not source.is_file():
            raise ConfigError(
                f"no {source}: expected COCO's annotations_trainval2017.zip there (docs/datasets.md)"
            )
        items.append(SplitFile(source, out / f"instances_{split}_{part}_2.json", part))
    return Converted(len(items), convert_all(convert_file, items, jobs=arguments.jobs, name="ov_coco"), out)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "ov_coco.py",
        "Annotation files of open-vocabulary COCO: 48 base classes (seen), 17 novel ones (unseen), or all.",
        EXAMPLES,
    )
    parser.add_argument("source", type=Path, help="folder of COCO: annotations/instances_<split>.json")
    parser.add_argument("-o", "--out", type=Path, help="folder of the new files (default: SOURCE/zero-shot)")
    parser.add_argument(
        "--files",
        nargs="+",
        default=["train2017:seen", "val2017:all"],
        metavar="SPLIT:PART",
        help="what to write (default: train2017:seen val2017:all)",
    )
    add_jobs(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return run_tool(lambda: convert(arguments))


if __name__ == "__main__":
    sys.exit(main())
