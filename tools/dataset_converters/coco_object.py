"""Labels of COCO-Object from the pixel maps of COCO-Stuff 164k: 80 things, everything else background.

With `--stuff`, labels of COCO-Stuff itself: its numbers, which have gaps, become 0 to 170.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ovseg.errors import ConfigError
from ovseg.prepare.conversion import Converted, add_jobs, convert_all, make_parser, run_tool
from ovseg.prepare.label_tables import LabelMap, convert_map

EXAMPLES = """\
  python tools/dataset_converters/coco_object.py data/coco_stuff164k -o data/coco_object
  python tools/dataset_converters/coco_object.py data/coco_stuff164k -o data/coco_object --splits train2017
  python tools/dataset_converters/coco_object.py data/coco_stuff164k --stuff     (labels of COCO-Stuff itself)
"""
SUFFIXES = {"object": "_instanceTrainIds.png", "stuff": "_labelTrainIds.png"}


def pixel_maps(folder: Path) -> list[Path]:
    """COCO-Stuff's own maps in a folder, not what was made from them."""
    return sorted(
        path for path in folder.glob("*.png") if "TrainIds" not in path.name and path.name[0] != "."
    )


def link_images(source: Path, out: Path) -> None:
    """The images are the same; a link saves 20 GB."""
    target = out / "images"
    if target.exists() or out.resolve() == source.resolve():
        return
    try:
        target.symlink_to((source / "images").resolve(), target_is_directory=True)
    except OSError as error:
        print(
            f"note: could not link the images ({error}): copy {source / 'images'} to {target}",
            file=sys.stderr,
        )


def convert(arguments: argparse.Namespace) -> Converted:
    source, out = arguments.source, arguments.out or arguments.source
    kind = "stuff" if arguments.stuff else "object"
    items = []
    for split in arguments.splits:
        maps = pixel_maps(source / "annotations" / split)
        if not maps:
            raise ConfigError(
                f"no pixel maps in {source / 'annotations' / split}: expected the PNG files of COCO-Stuff's "
                f"stuffthingmaps_trainval2017.zip there (docs/datasets.md)"
            )
        folder = out / "annotations" / split
        items += [LabelMap(each, folder / (each.stem + SUFFIXES[kind]), kind) for each in maps]
    problems = convert_all(convert_map, items, jobs=arguments.jobs, name=kind)
    link_images(source, out)
    return Converted(len(items), problems, out / "annotations")


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "coco_object.py",
        "Labels of COCO-Object (80 things and background) from COCO-Stuff 164k's pixel maps.",
        EXAMPLES,
    )
    parser.add_argument(
        "source", type=Path, help="folder of COCO-Stuff 164k: images/ and annotations/<split>/*.png"
    )
    parser.add_argument("-o", "--out", type=Path, help="folder of the new dataset (default: the source)")
    parser.add_argument(
        "--splits", nargs="+", default=["val2017"], help="default: val2017, all that a test needs"
    )
    parser.add_argument("--stuff", action="store_true", help="write the 171 labels of COCO-Stuff instead")
    add_jobs(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    return run_tool(lambda: convert(arguments))


if __name__ == "__main__":
    sys.exit(main())
