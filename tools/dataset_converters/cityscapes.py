"""Labels of Cityscapes' 19 classes (trainIds) from its label ids.

The same numbers as of the owners' csCreateTrainIdLabelImgs, which paints all polygons once more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ovseg.errors import ConfigError
from ovseg.prepare.conversion import Converted, add_jobs, convert_all, make_parser, run_tool
from ovseg.prepare.label_tables import LabelMap, convert_map

EXAMPLES = """\
  python tools/dataset_converters/cityscapes.py data/cityscapes
  python tools/dataset_converters/cityscapes.py data/cityscapes --splits train val
"""
IDS, TRAIN_IDS = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


def convert(arguments: argparse.Namespace) -> Converted:
    labels = arguments.source / "gtFine"
    items = []
    for split in arguments.splits:
        found = sorted((labels / split).glob(f"*/*{IDS}"))
        if not found:
            raise ConfigError(
                f"no {labels / split}/<city>/*{IDS}: expected gtFine of Cityscapes' gtFine_trainvaltest.zip "
                f"there (docs/datasets.md)"
            )
        items += [
            LabelMap(each, each.with_name(each.name.removesuffix(IDS) + TRAIN_IDS), "cityscapes")
            for each in found
        ]
    problems = convert_all(convert_map, items, jobs=arguments.jobs, name="trainIds")
    return Converted(len(items), problems, labels)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "cityscapes.py", "Labels of Cityscapes' 19 classes (trainIds) beside its label ids.", EXAMPLES
    )
    parser.add_argument("source", type=Path, help="folder of Cityscapes, with gtFine/<split>/<city>/")
    parser.add_argument("--splits", nargs="+", default=["val"], help="default: val, all that a test needs")
    add_jobs(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return run_tool(lambda: convert(arguments))


if __name__ == "__main__":
    sys.exit(main())
