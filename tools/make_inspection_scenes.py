"""Write inspection scenes in the layout of MVTec AD: good images to learn from, test images, masks.

Thin on purpose: the scenes are `ovseg.scenes.inspection`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make_inspection_scenes.py",
        description="Draw products, good and damaged, into OUT/<kind>/{train,test,ground_truth}.",
        epilog="example: python tools/make_inspection_scenes.py data/inspection --kinds pizza clock --good 8",
    )
    parser.add_argument("out", type=Path, help="folder to write, new or empty")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="products (default: the benchmark's six)")
    parser.add_argument(
        "--good", type=int, default=16, help="good images of each to learn from (default: 16)"
    )
    parser.add_argument("--test", type=int, default=24, help="test images of each (default: 24)")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(224, 288), metavar=("H", "W"), help="pixels (default: 224 288)"
    )
    parser.add_argument("--seed", type=int, default=0, help="which scenes (default: 0)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    arguments = build_parser().parse_args(argv)
    from ovseg.errors import ConfigError, OvsegError
    from ovseg.scenes.inspection import KINDS

    try:
        if arguments.out.exists() and any(arguments.out.iterdir()):
            raise ConfigError(f"{arguments.out} is not empty: name a new folder")
        for kind in arguments.kinds or KINDS:
            write(kind, arguments)
            print(f"{arguments.out / kind.replace(' ', '_')}: {arguments.good} good, {arguments.test} test")
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(kind: str, arguments: argparse.Namespace) -> None:
    """One product's folder."""
    from ovseg.scenes.inspection import InspectionSet

    folder, size_hw = arguments.out / kind.replace(" ", "_"), tuple(arguments.size)
    good = InspectionSet(kind, "good", arguments.seed, length=arguments.good, size_hw=size_hw)
    for index in range(len(good)):
        save(good[index].image, folder / "train" / "good" / f"{index:03d}.png")
    test = InspectionSet(kind, "test", arguments.seed, length=arguments.test, size_hw=size_hw)
    for index in range(len(test)):
        scene = test[index]
        defect = scene.instance_defects[0] or "good"
        save(scene.image, folder / "test" / defect / f"{index:03d}.png")
        if defect != "good":
            mask = scene.defects.astype(np.uint8) * 255
            save(mask, folder / "ground_truth" / defect / f"{index:03d}_mask.png")


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


if __name__ == "__main__":
    sys.exit(main())
