"""Objects as pictures: boxes and masks with names, instances, counted points; numbers in the legend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from ovseg.counting_results import Counts
from ovseg.detection_results import Detections
from ovseg.errors import ShapeError
from ovseg.outputs.palette import Color, Scheme, class_colors
from ovseg.outputs.visualize import Entry, beside, boundary
from ovseg.panoptic_results import Panoptic

WHITE: Color = (255, 255, 255)
BLACK: Color = (16, 18, 22)


def detection_overlay(
    image: UInt8[np.ndarray, "_ _ 3"],
    detections: Detections,
    *,
    opacity: float = 0.55,
    legend: bool = True,
    scheme: Scheme = "vivid",
    colors: Sequence[Color | None] | None = None,
) -> Image.Image:
    """The image with boxes, tinted masks where there are some, and a name and score on each box.

    Args:
        image: RGB.
        detections: of the same size. Less sure ones are drawn first, below the others.
        opacity: of the masks, 0 to 1.
        legend: list the classes with their number of objects, to the right.
        scheme, colors: see `ovseg.outputs.palette.class_colors`.

    Raises:
        ShapeError: the sizes differ.
    """
    _check(image, detections.image_hw, "detections")
    palette = class_colors(detections.names, (), colors, scheme)
    order = np.argsort(detections.scores, kind="stable")
    pixels = image
    if detections.masks is not None:
        pixels = image.copy()
        for index in order:
            _tint(pixels, detections.mask(int(index)), palette[detections.labels[index]], opacity)
    picture = Image.fromarray(pixels)
    draw, size = ImageDraw.Draw(picture), _letters(picture)
    font = ImageFont.load_default(size)
    for index in order:
        color = palette[detections.labels[index]]
        left, top, right, bottom = detections.boxes_xyxy[index].tolist()
        draw.rectangle((left, top, right - 1, bottom - 1), outline=color, width=max(2, size // 6))
    for index in order:  # after all boxes: no line runs through a name
        left, top = detections.boxes_xyxy[index, :2].tolist()
        text = f"{detections.names[detections.labels[index]]} {detections.scores[index]:.2f}"
        _plate(draw, (left, top), text, font, palette[detections.labels[index]])
    return beside(picture, _numbers(detections.counts(), detections.names, palette)) if legend else picture


def instance_overlay(
    image: UInt8[np.ndarray, "_ _ 3"],
    panoptic: Panoptic,
    *,
    opacity: float = 0.55,
    legend: bool = True,
    scheme: Scheme = "vivid",
    colors: Sequence[Color | None] | None = None,
) -> Image.Image:
    """The image with every segment tinted: neighbours of one class in different shades, each outlined.

    Args:
        image, opacity, legend, scheme, colors: see `detection_overlay`; stuff is tinted at half the opacity.
        panoptic: of the same size.

    Raises:
        ShapeError: the sizes differ.
    """
    _check(image, panoptic.image_hw, "segments")
    palette = class_colors(panoptic.names, (), colors, scheme)
    seen: Counter[int] = Counter()
    tint = np.zeros((len(panoptic) + 1, 3), np.uint8)
    alpha = np.zeros(len(panoptic) + 1, np.uint8)
    for number, label in enumerate(panoptic.labels.tolist(), start=1):
        tint[number] = _shade(palette[label], seen[label])
        seen[label] += bool(panoptic.is_thing[number - 1])
        alpha[number] = round(255 * opacity * (1 if panoptic.is_thing[number - 1] else 0.5))
    mask = alpha[panoptic.segments]
    edge = boundary(panoptic.segments, max(1, round(min(panoptic.image_hw) / 260))) & (mask > 0)
    mask[edge] = 255
    picture = Image.composite(
        Image.fromarray(tint[panoptic.segments]), Image.fromarray(image), Image.fromarray(mask)
    )
    if not legend:
        return picture
    things = Counter(panoptic.labels[panoptic.is_thing].tolist())
    numbers = {panoptic.names[label]: number for label, number in things.most_common()}
    lines = _numbers(numbers, panoptic.names, palette)
    for number in np.flatnonzero(~panoptic.is_thing).tolist():
        share = float((panoptic.segments == number + 1).mean())
        label = int(panoptic.labels[number])
        lines.append(Entry(panoptic.names[label], palette[label], share, label))
    return beside(picture, lines)


def count_overlay(
    image: UInt8[np.ndarray, "_ _ 3"],
    counts: Counts,
    *,
    opacity: float = 0.55,
    legend: bool = True,
    scheme: Scheme = "vivid",
    colors: Sequence[Color | None] | None = None,
) -> Image.Image:
    """The image with a dot on each object that was counted; without points, the density as a tint.

    Args:
        image, opacity, legend, scheme, colors: see `detection_overlay`. Colours are by the counted classes.
        counts: of an image of that size.

    Raises:
        ShapeError: the sizes differ.
    """
    _check(image, counts.image_hw, "counts")
    names = [each.name for each in counts.classes]
    palette = class_colors(names, (), colors, scheme)
    pixels = image.copy()
    for each, color in zip(counts.classes, palette, strict=True):
        if each.number > 0 and not len(each.points_xy):
            density = each.picture(counts.image_hw)
            _tint(pixels, density / max(float(density.max()), 1e-12), color, opacity)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    radius = max(3, round(min(picture.size) / 70))
    for each, color in zip(counts.classes, palette, strict=True):
        for x, y in each.points_xy.tolist():
            for reach, fill in ((radius + 2, BLACK), (radius + 1, WHITE), (radius, color)):
                draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill)
    if not legend:
        return picture
    most = max((each.number for each in counts.classes), default=0)
    lines = [
        Entry(
            each.name,
            color,
            each.number / most,
            index,
            f"{each.number:.4g}" + (f" ± {each.uncertainty:.2g}" if each.uncertainty >= 0.05 else ""),
        )
        for index, (each, color) in enumerate(zip(counts.classes, palette, strict=True))
        if each.number > 0
    ]
    return beside(picture, sorted(lines, key=lambda line: -line.share) or [_nothing()])


def _numbers(numbers: dict[str, int], names: Sequence[str], palette: Sequence[Color]) -> list[Entry]:
    most = max(numbers.values(), default=0)
    index_of = {name: index for index, name in enumerate(names)}
    found = [
        Entry(name, palette[index_of[name]], number / most, index_of[name], str(number))
        for name, number in numbers.items()
    ]
    return found or [_nothing()]


def _nothing() -> Entry:
    return Entry("(nothing found)", WHITE, 0.0, -1, "0")


def _check(image: np.ndarray, image_hw: tuple[int, int], what: str) -> None:
    if image.shape[:2] != tuple(image_hw):
        raise ShapeError(
            f"image is {image.shape[0]}x{image.shape[1]}, its {what} are of {image_hw[0]}x{image_hw[1]} "
            f"(HxW): they must be of the same size"
        )


def _tint(
    pixels: UInt8[np.ndarray, "H W 3"],
    where: Shaped[np.ndarray, "H W"],
    color: Color,
    opacity: float,
) -> None:
    """Mixes a colour into pixels in place; `where` is a mask, or weights in [0, 1]."""
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    if not len(rows):
        return
    place = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    weight = (opacity * where[place].astype(np.float32))[..., None]
    pixels[place] = pixels[place] + ((np.array(color, np.float32) - pixels[place]) * weight).round().astype(
        int
    )


def _shade(color: Color, number: int) -> tuple[int, int, int]:
    """The class's colour for its first object; lighter and darker ones for the others."""
    if number == 0:
        return color
    step = 0.16 * ((number + 1) // 2 % 4 or 4)
    toward = 255 if number % 2 else 0
    red, green, blue = (round(each + (toward - each) * step) for each in color)
    return red, green, blue


def _letters(picture: Image.Image) -> int:
    return int(np.clip((picture.width * picture.height) ** 0.5 / 42, 11, 48))


def _plate(
    draw: ImageDraw.ImageDraw,
    corner_xy: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    color: Color,
) -> None:
    """Text on a plate of its colour, above the corner, or below where it would leave the picture."""
    width, height = draw.textbbox((0, 0), text, font=font)[2:]
    x = min(max(corner_xy[0], 0), max(draw.im.size[0] - width - 4, 0))
    y = corner_xy[1] - height - 4
    y = y if y >= 0 else max(corner_xy[1], 0)
    draw.rectangle((x, y, x + width + 4, y + height + 4), fill=color)
    dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] < 140
    draw.text((x + 2, y + 1), text, fill=WHITE if dark else BLACK, font=font)
