"""Draw demo/images again: scenes of the "demo", "counting" and "anomaly" splits, which no training sees.

python tools/make_demo_images.py            # rewrites demo/images, its README and demo/classes.txt
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from PIL import Image

from ovseg.scenes import SceneSet

ROOT = Path(__file__).resolve().parents[1]

#: File below demo/images -> split, seed, index, (height, width).
PICTURES = {
    "picnic.jpg": ("demo", 0, 20, (256, 336)),
    "farm.jpg": ("demo", 0, 2, (240, 320)),
    "clocks.jpg": ("demo", 0, 8, (288, 352)),
    "desk.jpg": ("demo", 0, 18, (256, 352)),
    "kitchen.jpg": ("demo", 0, 14, (256, 320)),
    "street.jpg": ("demo", 0, 12, (240, 336)),
    "night.jpg": ("demo", 0, 11, (336, 256)),
    "beach.jpg": ("demo", 0, 21, (272, 352)),
    "counting/many_1.jpg": ("counting", 0, 0, (288, 384)),
    "counting/many_2.jpg": ("counting", 0, 3, (320, 256)),
    "defects/one_1.jpg": ("anomaly", 0, 1, (240, 320)),
    "defects/one_2.jpg": ("anomaly", 0, 2, (240, 320)),
}

README = """\
# Demo images

Drawn scenes from splits that no training sees ("demo", "counting", "anomaly" of `ovseg.scenes`), made by
`python tools/make_demo_images.py`. Their pictures of things come from Noto Color Emoji (see
`ovseg/bundled/NOTICE.md`). They are what the bundled model knows; photographs are not.

| file | split, seed, index | what is in it |
|---|---|---|
"""


def main() -> None:
    """Draws every picture and writes what is in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", type=Path, default=ROOT / "demo", help="folder to write into")
    demo = parser.parse_args().demo
    rows, names = [], Counter()
    for file, (split, seed, index, size_hw) in PICTURES.items():
        scene = SceneSet(split, seed, length=index + 1, size_hw=size_hw)[index]
        path = demo / "images" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(path, quality=92)
        names.update([*scene.counts, *scene.backgrounds])
        damage = sorted({each for each in scene.instance_defects if each})
        content = ", ".join(f"{count} x {name}" for name, count in scene.counts.items())
        damaged = f" (damage: {', '.join(damage)})" if damage else ""
        content = f"{content}{damaged}; {', '.join(scene.backgrounds)}"
        rows.append(f"| {file} | {split}, {seed}, {index} | {content} |\n")
    (demo / "images" / "README.md").write_text(README + "".join(rows), encoding="utf-8")
    words = "\n".join(["# what is in demo/images, a class a line", *sorted(names)])
    (demo / "classes.txt").write_text(f"{words}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
