"""Anomaly maps as pictures: the image under a heat map, the mask outlined, a scale beside it."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from ovseg.anomaly_results import AnomalyMap
from ovseg.errors import ShapeError
from ovseg.outputs.visualize import FAINT, INK, PANEL, boundary

#: Blue to yellow, ever lighter, the same for red-green colour-blind eyes: anchors of cividis (Nunez et al.,
#: PLoS ONE 2018).
ANCHORS = ((0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56))


def heat_colors(values: Float[np.ndarray, "*space"]) -> UInt8[np.ndarray, "*space 3"]:
    """RGB for values in [0, 1]."""
    steps = np.linspace(0, 1, len(ANCHORS))
    channels = [np.interp(values, steps, channel) for channel in np.array(ANCHORS, float).T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def anomaly_overlay(
    image: UInt8[np.ndarray, "_ _ 3"],
    result: AnomalyMap,
    *,
    opacity: float = 0.75,
    outline: bool = True,
    scale: bool = True,
) -> Image.Image:
    """The image under its heat map.

    What is normal stays clear: the colour fades out below the threshold. Without a threshold the colours
    span the map's own range, so that the hottest spot is bright in any image, a good one too.

    Args:
        image: RGB.
        result: of the same size.
        opacity: of the hottest colour, 0 to 1.
        outline: draw the mask's border, white inside and dark outside.
        scale: a colour scale with the score to the right; the picture itself stays uncovered.

    Raises:
        ShapeError: the sizes differ, or the opacity is no share.
    """
    if image.shape[:2] != result.image_hw:
        raise ShapeError(
            f"image is {image.shape[0]}x{image.shape[1]}, its anomaly map {result.image_hw[0]}x"
            f"{result.image_hw[1]} (HxW): they must be of the same size"
        )
    if not 0 <= opacity <= 1:
        raise ShapeError(f"opacity is {opacity:g}: expected 0 to 1")
    heat = result.normalised_map
    if heat is None:
        low, high = float(result.map.min()), float(result.map.max())
        heat = (result.map - low) / max(high - low, 1e-12)
    alpha = Image.fromarray((255 * opacity * np.clip(2 * heat, 0, 1)).round().astype(np.uint8))
    picture = Image.composite(Image.fromarray(heat_colors(heat)), Image.fromarray(image), alpha)
    mask = result.mask
    if outline and mask is not None:
        pixels = np.array(picture)
        edge = boundary(mask.astype(np.uint8), max(1, round(min(mask.shape) / 400)))
        pixels[edge & mask] = 255
        pixels[edge & ~mask] = INK
        picture = Image.fromarray(pixels)
    return _with_scale(picture, result) if scale else picture


def _with_scale(picture: Image.Image, result: AnomalyMap) -> Image.Image:
    size = int(np.clip((picture.width * picture.height) ** 0.5 / 38, 12, 96))
    words = {None: "no threshold", True: "anomalous", False: "normal"}[result.label]
    number = result.score if result.normalised_score is None else result.normalised_score
    font = ImageFont.load_default(size)
    lines = (words, f"{number:.3g}")
    width = int(max(font.getlength(line) for line in (*lines, "threshold"))) + 4 * size
    height = max(picture.height, 9 * size)
    canvas = Image.new("RGB", (picture.width + width, height), PANEL)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    left, top, bottom = picture.width + size, 4 * size, height - size
    for row, line in enumerate(lines):
        draw.text((left, size * (1 + 1.3 * row)), line, fill=INK if row == 0 else FAINT, font=font)
    bar = heat_colors(np.linspace(1.0, 0.0, bottom - top))[:, None].repeat(size, axis=1)
    canvas.paste(Image.fromarray(bar), (left, top))
    if result.threshold is not None:
        middle = (top + bottom) // 2
        draw.line((left, middle, left + 1.4 * size, middle), fill=INK, width=max(1, size // 10))
        draw.text((left + 1.7 * size, middle), "threshold", fill=FAINT, font=font, anchor="lm")
    return canvas
