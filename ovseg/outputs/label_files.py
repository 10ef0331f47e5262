"""Labels and scores as files: PNG with names inside, and numpy's own form."""

from __future__ import annotations

import json
from os import PathLike

import numpy as np
from PIL import Image, PngImagePlugin

from ovseg.anomaly_results import AnomalyMap
from ovseg.counting_results import Counts
from ovseg.errors import ConfigError
from ovseg.images import BinaryStream
from ovseg.outputs.palette import Scheme, class_colors
from ovseg.panoptic_results import Panoptic
from ovseg.results import Segmentation


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


def read_labels(path: str | PathLike[str]) -> tuple[np.ndarray, list[str], int]:
    """A label PNG: `(labels (H, W), class names, void label)`."""
    with Image.open(path) as picture:
        text = json.loads(picture.text["ovseg"])  # type: ignore[attr-defined]
        return np.array(picture), text["classes"], text["void"]


def write_ids(stream: BinaryStream, result: Panoptic) -> None:
    """The segment of every pixel as 16 bit grey PNG, 0 where there is none; "ovseg" has each one's class."""
    info = PngImagePlugin.PngInfo()
    segments = [
        {"id": each["id"], "name": result.names[each["category_id"] - 1], "thing": each["isthing"]}
        for each in result.segments_info()
    ]
    info.add_itxt("ovseg", json.dumps({"segments": segments}), zip=True)
    Image.fromarray(result.segments.astype(np.uint16)).save(stream, "PNG", pnginfo=info)


def write_panoptic(stream: BinaryStream, result: Panoptic) -> None:
    """COCO's panoptic PNG: segment numbers as R + 256 G + 256^2 B."""
    Image.fromarray(result.to_panoptic_png()).save(stream, "PNG")


def write_mask(stream: BinaryStream, result: AnomalyMap) -> None:
    """Where the image is anomalous: 255, else 0.

    Raises:
        ConfigError: no threshold says from when on that is.
    """
    if result.mask is None:
        raise ConfigError(
            "a mask of what is anomalous needs a threshold: good images give one (--good DIR), or "
            "--anomaly-threshold does"
        )
    Image.fromarray(result.mask.astype(np.uint8) * 255).save(stream, "PNG")


def write_heat(stream: BinaryStream, result: AnomalyMap) -> None:
    """How anomalous every pixel is, compressed: `map` (H, W) float16 and `score`."""
    np.savez_compressed(stream, map=result.map.astype(np.float16), score=np.float32(result.score))


def write_densities(stream: BinaryStream, result: Counts) -> None:
    """Objects per cell, compressed: `density` (K, h, w) of the classes found, their `names`, `image_hw`."""
    found = [each for each in result.classes if each.number > 0]
    np.savez_compressed(
        stream,
        density=np.stack([each.density for each in found]) if found else np.zeros((0, 1, 1), np.float32),
        names=np.array([each.name for each in found], dtype=np.str_),
        image_hw=np.array(result.image_hw),
    )
