"""Results as pictures: the image tinted by class, with class boundaries and a legend beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

from ovseg.errors import ShapeError
from ovseg.outputs.palette import VOID, Color, Scheme, class_colors
from ovseg.results import Segmentation

#: System fonts tried for names that Pillow's own font cannot write, by file name.
FALLBACK_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "WenQuanYi Micro Hei.ttf",
    "wqy-zenhei.ttc",
    "Arial Unicode.ttf",
    "msyh.ttc",
    "YuGothM.ttc",
    "arial.ttf",
)

PANEL: Color = (250, 250, 251)
INK: Color = (32, 35, 42)
FAINT: Color = (112, 118, 130)
TRACK: Color = (232, 234, 238)


@dataclass(frozen=True)
class Entry:
    """A line of the legend; `share` is the length of its bar."""

    name: str
    color: Color
    share: float
    index: int
    text: str = ""

    @property
    def value(self) -> str:
        """What stands at the end of the line: the text, or the share in percent."""
        return self.text or _percent(self.share)


def overlay(
    image: UInt8[np.ndarray, "H W 3"],
    segmentation: Segmentation,
    *,
    opacity: float = 0.55,
    legend: bool = True,
    boundaries: bool = True,
    scheme: Scheme = "vivid",
) -> Image.Image:
    """The image tinted by class.

    Background classes are tinted at a third of the opacity, void pixels not at all. Boundaries lie on the
    inner side of every region, in its colour. The legend stands beside the picture (below it where the
    picture is wide), so no pixel is covered: the picture itself is the top left part, at its own size.

    Args:
        image: RGB.
        segmentation: its result, of the same size.
        opacity: 0 shows the image alone, 1 flat colours.
        legend: list the classes found, largest first, with their share of the pixels.
        boundaries: draw them.
        scheme: see `ovseg.outputs.palette.class_colors`.
    """
    if image.shape[:2] != segmentation.image_hw:
        raise ShapeError(
            f"image is {image.shape[0]}x{image.shape[1]}, its segmentation "
            f"{segmentation.image_hw[0]}x{segmentation.image_hw[1]} (HxW): they must be of the same size"
        )
    if not 0 <= opacity <= 1:
        raise ShapeError(f"opacity is {opacity:g}: expected 0 to 1")
    colors = segmentation_colors(segmentation, scheme)
    size = max(segmentation.void, len(colors)) + 1
    tint = np.zeros((size, 3), np.uint8)
    tint[: len(colors)] = colors
    alpha = np.zeros(size, np.uint8)
    alpha[: len(colors)] = round(255 * opacity)
    alpha[sorted(segmentation.background)] = round(255 * opacity / 3)
    labels = segmentation.labels
    flat = Image.fromarray(tint[labels])
    mask = alpha[labels]
    height, width = segmentation.image_hw
    if boundaries:
        thickness = max(1, round(min(height, width) / 260))
        edge = boundary(labels, thickness) & (mask > 0)
        mask[edge] = np.maximum(mask[edge], round(255 * min(1.0, opacity + 0.35)))
    picture = Image.composite(flat, Image.fromarray(image), Image.fromarray(mask))
    return beside(picture, entries(segmentation, colors)) if legend else picture


def segmentation_colors(segmentation: Segmentation, scheme: Scheme = "vivid") -> list[Color]:
    """The colour of each class: the vocabulary's own where it says so, else by name."""
    return class_colors(segmentation.names, segmentation.background, segmentation.colors, scheme)


def boundary(labels: np.ndarray, thickness: int = 1) -> Bool[np.ndarray, "H W"]:
    """Pixels within `thickness` of a pixel with another label, on both sides."""
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        step = min(thickness, labels.shape[axis] - 1)
        if step < 1:
            continue
        ahead = [slice(None), slice(None)]
        behind = [slice(None), slice(None)]
        ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
        differs = labels[tuple(ahead)] != labels[tuple(behind)]
        edge[tuple(ahead)] |= differs
        edge[tuple(behind)] |= differs
    return edge


def entries(segmentation: Segmentation, colors: Sequence[Color]) -> list[Entry]:
    """The classes found, largest first, and last the pixels of no class."""
    shares = segmentation.shares()
    index_of = {name: index for index, name in enumerate(segmentation.names)}
    found = [Entry(name, colors[index_of[name]], share, index_of[name]) for name, share in shares.items()]
    rest = float((segmentation.labels == segmentation.void).mean())
    if rest > 0:
        found.append(Entry("(no class)", VOID, rest, -1))
    return found


def beside(picture: Image.Image, found: Sequence[Entry]) -> Image.Image:
    """The picture with its legend to the right, or below it where it is wide."""
    size = int(np.clip((picture.width * picture.height) ** 0.5 / 38, 12, 96))
    if picture.width > 1.9 * picture.height:
        columns = max(1, int(picture.width / (size * 17)))
        panel = legend_panel(found, size, columns=columns, width=picture.width)
        canvas = Image.new("RGB", (max(picture.width, panel.width), picture.height + panel.height), PANEL)
        canvas.paste(panel, (0, picture.height))
    else:
        rows = max(3, int((picture.height - size) / (size * 2.3)))
        panel = legend_panel(found, size, rows=rows)
        canvas = Image.new("RGB", (picture.width + panel.width, max(picture.height, panel.height)), PANEL)
        canvas.paste(panel, (picture.width, 0))
    canvas.paste(picture, (0, 0))
    return canvas


def legend_panel(
    found: Sequence[Entry],
    size: int = 16,
    *,
    columns: int | None = None,
    rows: int | None = None,
    width: int | None = None,
) -> Image.Image:
    """The legend alone: swatch, name, percent and a bar for the share.

    Args:
        found: what to list.
        size: height of the letters in pixels.
        columns: how many columns; the rows follow (at most six, the rest is summed up in a line).
        rows: how many rows at most; there are up to two columns, then the rest is summed up.
        width: least width of the panel.
    """
    if columns is not None:
        capacity = columns * 6
    else:
        capacity = (rows or 12) * 2
    shown = list(found[:capacity])
    hidden = found[len(shown) :]
    if hidden:
        hidden = [shown.pop(), *hidden]
        shown.append(Entry(f"+ {len(hidden)} more", TRACK, sum(each.share for each in hidden), -2))
    if columns is None:
        columns = 1 if len(shown) <= (rows or 12) else 2
    lines = -(-max(len(shown), 1) // columns)
    font = _default(size)
    texts = [_writable(each, size) for each in shown]
    longest = max([text_font.getlength(text) for text, text_font in texts], default=0)
    name_w = int(np.clip(longest, 4 * size, 14 * size))
    column_w = int(size * 1.9 + name_w + size * 3.6)
    if width:
        column_w = max((width - size) // columns, size * 10)
        name_w = column_w - int(size * 5.5)
    row_h = round(size * 2.3)
    panel = Image.new("RGB", (columns * column_w + size, lines * row_h + size), PANEL)
    draw = ImageDraw.Draw(panel)
    for number, entry in enumerate(shown):
        left = size + (number // lines) * column_w
        top = size // 2 + (number % lines) * row_h
        middle = top + row_h * 0.4
        swatch = (left, middle - size * 0.5, left + size, middle + size * 0.5)
        if entry.index == -1:
            draw.rounded_rectangle(swatch, size / 4, outline=FAINT, width=max(1, size // 10))
        elif entry.index >= 0:
            draw.rounded_rectangle(swatch, size / 4, fill=entry.color)
        text, text_font = texts[number]
        text = _shorten(text, text_font, name_w)
        ink = INK if entry.index >= 0 else FAINT
        draw.text((left + size * 1.6, middle), text, fill=ink, font=text_font, anchor="lm")
        right = left + column_w - size
        draw.text((right, middle), entry.value, fill=FAINT, font=font, anchor="rm")
        bar_h = max(1, round(size / 8))
        bar = (left + size * 1.6, round(top + row_h - size * 0.3) - bar_h)
        draw.rectangle((*bar, right, bar[1] + bar_h - 1), fill=TRACK)
        if entry.index >= -1:
            reach = bar[0] + max(bar_h, (right - bar[0]) * entry.share)
            color = entry.color if entry.index >= 0 else FAINT
            draw.rectangle((*bar, reach, bar[1] + bar_h - 1), fill=color)
    return panel


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}" if share >= 0.0005 else "<0.1%"


@cache
def _fallback(size: int) -> tuple[ImageFont.FreeTypeFont, ...]:
    fonts = []
    for name in FALLBACK_FONTS:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(fonts)


@cache
def _writes(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether the font has the letter: a missing one is drawn like a code point that no font has."""
    if letter.isspace():
        return True
    drawn, missing = font.getmask(letter), font.getmask("\U0010fffd")
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)


@cache
def _default(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow's wheels are built with FreeType"
    return font


def _writable(entry: Entry, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The name and a font that can write it, else the number by which `classes.json` has it."""
    name = " ".join(entry.name.split()) or "(empty)"
    for font in (_default(size), *_fallback(size)):
        if all(_writes(font, letter) for letter in set(name)):
            return name, font
    readable = "".join(letter for letter in name if _writes(_default(size), letter)).strip()
    return f"class {entry.index}" + (f" ({readable})" if any(map(str.isalnum, readable)) else ""), _default(
        size
    )


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while len(text) > 1 and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
