"""Three images on disk in the layout of each anomaly benchmark: good ones, and one that is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

HW = (48, 64)
GOOD_LEVEL, BAD_LEVEL = 90, 220


def picture(seed: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Grey with a little noise, bright where it is damaged."""
    pixels = np.full((*HW, 3), GOOD_LEVEL, np.uint8)
    if mask is not None:
        pixels[mask] = BAD_LEVEL
    return pixels + np.random.default_rng(seed).integers(0, 9, pixels.shape, dtype=np.uint8)


def damage() -> np.ndarray:
    """Two regions."""
    mask = np.zeros(HW, bool)
    mask[8:20, 10:30] = mask[30:40, 44:60] = True
    return mask


def save(pixels: np.ndarray, path: Path) -> None:
    """PNG data, whatever the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG")


def write_mvtec(root: Path, suffix: str = "_mask") -> None:
    """Two categories; the first has three test images, the second two."""
    for number, category in enumerate(("metal_nut", "carpet")):
        folder = root / category
        for index in range(3):
            save(picture(index), folder / "train" / "good" / f"{index:03d}.png")
        for index in range(2 - number):
            save(picture(10 + index), folder / "test" / "good" / f"{index:03d}.png")
        save(picture(20, damage()), folder / "test" / "scratch" / "000.png")
        mask = damage().astype(np.uint8) * 255
        save(mask, folder / "ground_truth" / "scratch" / f"000{suffix}.png")


def write_visa(root: Path) -> None:
    """As it is downloaded: a split file, masks that hold the kind of defect."""
    rows = ["object,split,label,image,mask"]
    for split, names in (("train", ("0000", "0001", "0002")), ("test", ("0003", "0004"))):
        for index, name in enumerate(names):
            path = f"candle/Data/Images/Normal/{name}.JPG"
            save(picture(index), root / path)
            rows.append(f"candle,{split},normal,{path},")
    image, mask = "candle/Data/Images/Anomaly/000.JPG", "candle/Data/Masks/Anomaly/000.png"
    save(picture(20, damage()), root / image)
    save(damage().astype(np.uint8) * 3, root / mask)
    rows.append(f"candle,test,anomaly,{image},{mask}")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(rows) + "\n")


def write_visa_converted(root: Path) -> None:
    """As its authors' script converts it: masks are named as their images."""
    for index in range(3):
        save(picture(index), root / "candle" / "train" / "good" / f"{index:04d}.JPG")
    for index in range(2):
        save(picture(index), root / "candle" / "test" / "good" / f"{index + 3:04d}.JPG")
    save(picture(20, damage()), root / "candle" / "test" / "bad" / "000.JPG")
    save(damage().astype(np.uint8) * 255, root / "candle" / "ground_truth" / "bad" / "000.png")


WRITERS: dict[str, Callable[[Path], None]] = {
    "mvtec": write_mvtec,
    "visa": write_visa,
    "visa converted": write_visa_converted,
}
