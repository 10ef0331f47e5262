"""One scene through all rungs of the ladder, as one picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ovseg.errors import ConfigError
from ovseg.metrics import IoU
from ovseg.mm.scenes_benchmark import SceneScores
from ovseg.outputs.visualize import FAINT, INK, PANEL, entries, legend_panel, overlay, segmentation_colors
from ovseg.results import Segmentation
from ovseg.scenes import Scene


def ladder_picture(
    scene: Scene, found: Sequence[SceneScores], *, columns: int = 6, width: int = 216
) -> Image.Image:
    """The image, the truth and what every row made of it, with the mIoU of this scene below each.

    Args:
        scene: the scene whose labels the rows carry as `example`.
        found: the rows.
        columns: pictures side by side.
        width: of each, in pixels.

    Raises:
        ConfigError: a row has no labels of the scene.
    """
    names = found[0].classes
    truth = _segmentation(scene.labels, names)
    cells = [
        (Image.fromarray(scene.image), "image", ""),
        (overlay(scene.image, truth, legend=False), "truth", ""),
    ]
    for row in found:
        if row.example is None or row.example.shape != scene.labels.shape:
            raise ConfigError(f"row '{row.name}' has no labels of the scene: measure it with an example")
        measured = IoU(len(names))
        measured.update(row.example, scene.labels)
        picture = overlay(scene.image, _segmentation(row.example, names), legend=False)
        cells.append((picture, row.name, f"{100 * measured.report().mean_iou:.1f}"))
    height = round(width * scene.image.shape[0] / scene.image.shape[1])
    font = ImageFont.load_default(max(11, width // 16))
    gap, line = width // 24, round(width / 9)
    legend = legend_panel(
        entries(truth, segmentation_colors(truth)),
        width // 15,
        columns=columns // 2,
        width=columns * (width + gap),
    )
    lines = math.ceil(len(cells) / columns)
    size = (columns * (width + gap) + gap, lines * (height + line + gap) + gap + legend.height)
    canvas = Image.new("RGB", (max(size[0], legend.width), size[1]), PANEL)
    draw = ImageDraw.Draw(canvas)
    for index, (picture, name, figure) in enumerate(cells):
        left = gap + index % columns * (width + gap)
        top = gap + index // columns * (height + line + gap)
        canvas.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        middle = top + height + line / 2
        draw.text((left, middle), name, fill=INK, font=font, anchor="lm")
        draw.text((left + width, middle), figure, fill=FAINT, font=font, anchor="rm")
    canvas.paste(legend, (0, size[1] - legend.height))
    return canvas


def save_picture(picture: Image.Image, path: Path, *, max_bytes: int = 300_000) -> None:
    """Writes a picture; a JPEG as well as `max_bytes` allow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        picture.save(path)
        return
    for quality in range(92, 30, -6):
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=quality, optimize=True)
        if data.tell() <= max_bytes:
            break
    path.write_bytes(data.getvalue())


def _segmentation(labels: np.ndarray, names: tuple[str, ...]) -> Segmentation:
    return Segmentation(labels, names, np.ones(labels.shape, np.float32))
