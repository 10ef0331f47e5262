"""Labels of COCO-Object from the pixel maps of COCO-Stuff 164k: 80 things, everything else background.

The protocol of GroupViT (arXiv 2202.11094), which later methods follow: a pixel map of COCO-Stuff holds
COCO's category number minus 1 for things (0..89), 91..181 for stuff, 255 for unlabelled. Things become
1..80 in COCO's order; stuff and unlabelled pixels become background, 0.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

#: Category numbers, minus 1, that COCO reserves and never uses.
UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
THINGS = tuple(number for number in range(90) if number not in UNUSED)
STUFF = tuple(range(91, 182))
UNLABELLED = 255

EXAMPLES = """\
examples:
  python tools/dataset_converters/coco_object.py data/coco_stuff164k -o data/coco_object
  python tools/dataset_converters/coco_object.py data/coco_stuff164k -o data/coco_object --splits train2017
  python tools/dataset_converters/coco_object.py data/coco_stuff164k --stuff     (labels of COCO-Stuff itself)

The same command again goes on where it stopped. Exit status: 0 done, 1 some files failed, 2 wrong usage.
"""


class Kind(NamedTuple):
    """A way to number the labels."""

    suffix: str
    table: np.ndarray  # (256,) int16: from the map's number to the label, -1 where no map has it


def object_table() -> np.ndarray:
    """From COCO-Stuff's numbers to COCO-Object's: background 0, things 1..80."""
    table = np.full(256, -1, np.int16)
    table[list(STUFF)] = table[UNLABELLED] = 0
    table[list(THINGS)] = np.arange(1, len(THINGS) + 1)
    return table


def stuff_table() -> np.ndarray:
    """From COCO-Stuff's numbers, which have gaps, to the 171 that mmseg's dataset expects; 255 stays."""
    table = np.full(256, -1, np.int16)
    table[list(THINGS + STUFF)] = np.arange(len(THINGS + STUFF))
    table[UNLABELLED] = UNLABELLED
    return table


KINDS: dict[str, Callable[[], Kind]] = {
    "object": lambda: Kind("_instanceTrainIds.png", object_table()),
    "stuff": lambda: Kind("_labelTrainIds.png", stuff_table()),
}


def convert(source: Path, out: Path, kind_name: str) -> str | None:
    """One pixel map; written beside its place and then moved there, so that what exists is whole.

    Returns:
        What was wrong with it, or None.
    """
    kind = KINDS[kind_name]()
    target = out / (source.stem + kind.suffix)
    if target.exists():
        return None
    try:
        with Image.open(source) as image:
            numbers = np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        return f"{source}: cannot be read: {error}"
    if numbers.ndim != 2 or numbers.dtype != np.uint8:
        return f"{source}: expected one byte per pixel, got {numbers.dtype} {numbers.shape}"
    labels = kind.table[numbers]
    if (labels < 0).any():
        return f"{source}: number {numbers[labels < 0][0]} is none of COCO-Stuff's (is it converted already?)"
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    Image.fromarray(labels.astype(np.uint8)).save(part, format="PNG")
    os.replace(part, target)
    return None


def pixel_maps(folder: Path) -> list[Path]:
    """COCO-Stuff's own maps in a folder, not what was made from them."""
    return sorted(path for path in folder.glob("*.png") if "TrainIds" not in path.name)


def convert_all(sources: list[Path], out: Path, kind_name: str, workers: int) -> Iterator[str]:
    """Converts with several processes; yields what went wrong."""
    work = partial(convert, out=out, kind_name=kind_name)
    quiet = not sys.stderr.isatty()
    with tqdm(total=len(sources), desc=out.name, unit="map", disable=quiet) as bar:
        if workers == 1:
            for problem in map(work, sources):
                bar.update()
                yield from filter(None, [problem])
            return
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for problem in pool.map(work, sources, chunksize=16):
                bar.update()
                yield from filter(None, [problem])


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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coco_object.py",
        description="Labels of COCO-Object (80 things and background) from COCO-Stuff 164k's pixel maps.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", type=Path, help="folder of COCO-Stuff 164k: images/ and annotations/<split>/*.png"
    )
    parser.add_argument("-o", "--out", type=Path, help="folder of the new dataset (default: the source)")
    parser.add_argument(
        "--splits", nargs="+", default=["val2017"], help="default: val2017, all that a test needs"
    )
    parser.add_argument("--stuff", action="store_true", help="write the 171 labels of COCO-Stuff instead")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    out = arguments.out or arguments.source
    kind_name = "stuff" if arguments.stuff else "object"
    found = {split: pixel_maps(arguments.source / "annotations" / split) for split in arguments.splits}
    empty = [str(arguments.source / "annotations" / split) for split, maps in found.items() if not maps]
    if empty:
        print(
            f"error: no pixel maps in {', '.join(empty)}: expected the PNG files of COCO-Stuff's "
            f"stuffthingmaps_trainval2017.zip there (docs/datasets.md)",
            file=sys.stderr,
        )
        return 2
    if arguments.workers < 1:
        print(f"error: --workers must be at least 1, got {arguments.workers}", file=sys.stderr)
        return 2
    problems = []
    try:
        for split, maps in found.items():
            folder = out / "annotations" / split
            folder.mkdir(parents=True, exist_ok=True)
            problems += convert_all(maps, folder, kind_name, arguments.workers)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    link_images(arguments.source, out)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    done = sum(map(len, found.values())) - len(problems)
    print(f"{done} maps in {out / 'annotations'}" + (f", {len(problems)} failed" if problems else ""))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
