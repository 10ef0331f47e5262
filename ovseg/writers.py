"""What a run writes for each image: one small function per format, all in the table `WRITERS`."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from os import PathLike

import numpy as np
from PIL import Image, PngImagePlugin

from ovseg.errors import unknown_name
from ovseg.images import BinaryStream
from ovseg.palette import Color, Scheme, class_colors
from ovseg.results import Segmentation
from ovseg.runs import Writer
from ovseg.visualize import overlay

#: Other names that people use.
ALIASES = {"png": "labels", "label": "labels", "overlays": "overlay", "npz": "scores", "jpg": "overlay"}

FORMATS = ("labels", "overlay", "scores")


def build_writers(
    formats: Sequence[str], *, opacity: float = 0.55, legend: bool = True, scheme: Scheme = "vivid"
) -> list[Writer]:
    """Writers by name.

    Args:
        formats: of `FORMATS`, or their aliases.
        opacity: of the overlay's colours.
        legend: draw it beside the overlay.
        scheme: of the colours, also of the label image's palette.

    Raises:
        ConfigError: an unknown name.
    """

    def write_overlay(stream: BinaryStream, image: np.ndarray, result: Segmentation) -> None:
        picture = overlay(image, result, opacity=opacity, legend=legend, scheme=scheme)
        picture.save(stream, "JPEG", quality=92, subsampling=0)

    def write_palette_labels(stream: BinaryStream, image: np.ndarray, result: Segmentation) -> None:
        write_labels(stream, result, scheme=scheme)

    table = {
        "labels": Writer("labels", "labels", ".png", write_palette_labels),
        "overlay": Writer("overlay", "overlays", ".jpg", write_overlay),
        "scores": Writer("scores", "scores", ".npz", lambda stream, _, result: write_scores(stream, result)),
    }
    chosen = list(dict.fromkeys(ALIASES.get(name.strip().lower(), name.strip().lower()) for name in formats))
    for name in chosen:
        if name not in table:
            raise unknown_name("format", name, table)
    return [table[name] for name in chosen]


def write_labels(stream: BinaryStream, result: Segmentation, *, scheme: Scheme = "vivid") -> None:
    """The label of every pixel as PNG: 8 bit with a palette up to 255 classes, 16 bit grey above.

    `numpy.array(PIL.Image.open(path))` gives the labels back. Pixels of no class hold the void label, 255
    or 65535. The text chunk "ovseg" holds the class names and the void label as JSON.
    """
    info = PngImagePlugin.PngInfo()
    info.add_itxt("ovseg", json.dumps({"classes": list(result.names), "void": result.void}), zip=True)
    if result.void > 255:
        Image.fromarray(result.labels.astype(np.uint16)).save(stream, "PNG", pnginfo=info)
        return
    picture = Image.fromarray(result.labels.astype(np.uint8))
    colors = class_colors(result.names, result.background, result.colors, scheme)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colors)] = colors
    picture.putpalette(palette.tobytes())
    picture.save(stream, "PNG", pnginfo=info)


def write_scores(stream: BinaryStream, result: Segmentation) -> None:
    """Class probabilities, small and compressed: `scores` (K, h, w) float16, `names`, `image_hw`."""
    assert result.scores is not None, "the tool asks the inferencer to keep scores"
    np.savez_compressed(
        stream,
        scores=result.scores.astype(np.float16),
        names=np.array(result.names, dtype=np.str_),
        image_hw=np.array(result.image_hw),
    )


def class_table(
    names: Sequence[str],
    void: int,
    background: Collection[int] = (),
    given: Sequence[Color | None] | None = None,
    scheme: Scheme = "vivid",
) -> bytes:
    """The content of `classes.json`: what the labels of a run mean."""
    colors = class_colors(names, background, given, scheme)
    classes = [
        {"id": index, "name": name, "color": list(colors[index]), "background": index in background}
        for index, name in enumerate(names)
    ]
    return json.dumps({"void": void, "classes": classes}, indent=2, ensure_ascii=False).encode() + b"\n"


def read_labels(path: str | PathLike[str]) -> tuple[np.ndarray, list[str], int]:
    """A label PNG: `(labels (H, W), class names, void label)`."""
    with Image.open(path) as picture:
        text = json.loads(picture.text["ovseg"])  # type: ignore[attr-defined]
        return np.array(picture), text["classes"], text["void"]
