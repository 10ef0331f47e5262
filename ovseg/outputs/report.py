"""A run as one page: what was found in which image, how often, how long it took, what failed.

The page needs nothing beside itself: pictures are inside, styles and script too, and a policy in its head
forbids the browser to fetch anything.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from ovseg.inputs import ImageFile
from ovseg.outputs.palette import BACKGROUND, Color, Scheme, class_colors
from ovseg.record_file import atomic
from ovseg.records import Record, in_words
from ovseg.run_folder import RunFolder
from ovseg.text.vocabulary import Vocabulary

REPORT = "report.html"
#: Bytes of pictures in a page, about; images after that are listed without one.
BUDGET = 24_000_000
#: Sides of the pictures in pixels, the largest that fits the budget is taken; and bytes of one, about.
SIDES = {480: 36_000, 320: 18_000, 200: 8_000}
QUALITY = 80


@dataclass
class Found:
    """A line of the histogram, which is also a filter.

    Attributes:
        name: a class, or a verdict.
        color: of the class.
        images: how many have it.
        amount: share of all pixels ("px"), number of objects ("n").
    """

    name: str
    color: Color = BACKGROUND
    images: int = 0
    amount: dict[str, float] = field(default_factory=dict)

    def add(self, unit: str, amount: float) -> None:
        """More of it."""
        self.amount[unit] = self.amount.get(unit, 0.0) + amount

    @property
    def text(self) -> str:
        """The amounts in words."""
        words = [f"{self.amount['n']:g} objects"] if "n" in self.amount else []
        share = self.amount.get("px")
        if share is not None:
            words.append(f"{share:.1%}" if share >= 0.0005 else "<0.1%")
        return " · ".join(words)


def write_report(
    folder: RunFolder, images: Sequence[ImageFile], vocabulary: Vocabulary, scheme: Scheme = "vivid"
) -> None:
    """`report.html` of a run, from its records and overlays.

    Args:
        folder: of the run, opened; images without an overlay are listed without a picture.
        images: in the order that they shall have.
        vocabulary: the classes.
        scheme: of the colours, as in the overlays.
    """
    names = vocabulary.names
    colors = dict(
        zip(names, class_colors(names, vocabulary.background, vocabulary.colors, scheme), strict=True)
    )
    records = [folder.timed(each.name) for each in images if each.name in folder.records]
    errors = [folder.errors[each.name] for each in images if each.name in folder.errors]
    table = histogram(records, colors)
    number_of = {each.name: number for number, each in enumerate(table)}
    with atomic(folder.path / REPORT) as stream:
        for piece in _page(folder, records, errors, table, number_of):
            stream.write(piece.encode("utf-8", "backslashreplace"))


def histogram(records: Sequence[Record], colors: dict[str, Color]) -> list[Found]:
    """What was found, the most frequent first: classes, and verdicts on anomalies."""
    table: dict[str, Found] = {}
    pixels = sum(each["height"] * each["width"] for each in records) or 1
    for record in records:
        for name in names_in(record):
            table.setdefault(name, Found(name, colors.get(name, BACKGROUND))).images += 1
        for each in record.get("classes", ()):
            table[each["name"]].add("px", each["pixels"] / pixels)
        tasks = ("instances", "detections")
        twice = [record[task] for task in tasks if task in record]  # the same things, where both were asked
        for each in twice[0] if twice else ():
            table[each["name"]].add("n", 1.0)
        if not twice:
            for each in record.get("counts", ()):
                table[each["name"]].add("n", float(each["number"]))
    return sorted(table.values(), key=lambda each: (-each.images, -sum(each.amount.values()), each.name))


def names_in(record: Record) -> list[str]:
    """The classes of an image, and whether it is anomalous; each once."""
    found = [each["name"] for task in ("classes", "instances", "detections") for each in record.get(task, ())]
    found += [each["name"] for each in record.get("counts", ())]
    verdict = record.get("anomaly", {}).get("anomalous")
    if verdict is not None:
        found.append("anomalous" if verdict else "normal")
    return list(dict.fromkeys(found))


def thumbnail(path: Path, image_hw: tuple[int, int], side: int) -> bytes:
    """An overlay as a small JPEG, without the legend at its right or below."""
    with Image.open(path) as picture:
        width, height = picture.size
        picture.draft("RGB", (side * 2 * width // image_hw[1] + 1, side * 2 * height // image_hw[0] + 1))
        part = picture.width / width  # a JPEG may be decoded at a fraction of its size
        small = picture.convert("RGB").crop(
            (
                0,
                0,
                max(1, round(min(image_hw[1], width) * part)),
                max(1, round(min(image_hw[0], height) * part)),
            )
        )
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=QUALITY, optimize=True)
    return stream.getvalue()


@cache
def _asset(name: str) -> str:
    return resources.files("ovseg.outputs").joinpath(name).read_text("utf-8")


def _page(
    folder: RunFolder,
    records: Sequence[Record],
    errors: Sequence[Record],
    table: Sequence[Found],
    number_of: dict[str, int],
) -> Iterator[str]:
    settings = folder.settings
    title = f"{folder.path.resolve().name}: {len(records)} images"
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    yield (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<style>{_asset('report.css')}</style></head><body>"
    )
    asked = ", ".join(
        str(settings[key]) for key in ("method", "encoder") if isinstance(settings.get(key), str)
    )
    tasks = ", ".join(settings.get("tasks", ()))
    yield f"<header><h1>{escape(folder.path.resolve().name)}</h1><p>{escape(asked)} · {escape(tasks)}</p>"
    yield f'<dl class="figures">{"".join(_figures(records, errors))}</dl></header><main>'
    yield "<section><h2>Found</h2>"
    yield from _bars(table, len(records))
    yield "</section>"
    if errors:
        yield from _errors(errors)
    yield (
        '<section><h2>Images</h2><div class="tools"><input id="search" type="search" '
        'placeholder="file name" aria-label="file name"><span id="shown"></span>'
        '<button id="all" type="button" hidden>show all</button></div><div class="grid">'
    )
    pictures = [name for record in records for name in _overlays(record)]
    side = next((s for s, size in SIDES.items() if size * len(pictures) <= BUDGET), min(SIDES))
    left = BUDGET
    for record in records:
        content = []
        for name in _overlays(record):
            try:
                small = thumbnail(folder.path / name, (record["height"], record["width"]), side)
            except OSError:
                continue
            if len(small) <= left:
                left -= len(small)
                content.append((name, small))
        yield _card(record, content, number_of)
    yield "</div></section>"
    shown = json.dumps({"settings": settings, "versions": folder.versions}, indent=2, ensure_ascii=False)
    yield f"<section><details><summary>Settings</summary><pre>{escape(shown)}</pre></details></section>"
    yield f"</main><script>{_asset('report.js')}</script></body></html>\n"


def _figures(records: Sequence[Record], errors: Sequence[Record]) -> Iterator[str]:
    seconds = np.array([each.get("seconds", 0.0) for each in records])
    pairs = [("images", f"{len(records)}"), ("failed", f"{len(errors)}")]
    if len(seconds):
        slowest = records[int(seconds.argmax())]["image"]
        pairs += [
            ("seconds in all", f"{seconds.sum():.1f}"),
            ("median", f"{np.median(seconds):.2f} s"),
            ("90 % within", f"{np.percentile(seconds, 90):.2f} s"),
            ("slowest", f"{seconds.max():.2f} s, {slowest}"),
        ]
    return (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)


def _bars(table: Sequence[Found], images: int) -> Iterator[str]:
    if not table:
        yield "<p>Nothing was found.</p>"
        return
    yield '<p class="hint">Choose lines to see the images that have all of them.</p><div class="bars">'
    for number, each in enumerate(table):
        color = "#{:02x}{:02x}{:02x}".format(*each.color)
        yield (
            f'<button class="bar" type="button" data-k="{number}" aria-pressed="false">'
            f'<i style="background:{color}"></i><span>{escape(each.name)}</span>'
            f'<b><u style="width:{each.images / images:.1%};background:{color}"></u></b>'
            f"<em>{each.images} image{'' if each.images == 1 else 's'}</em>"
            f"<em>{escape(each.text)}</em></button>"
        )
    yield "</div>"


def _errors(errors: Sequence[Record]) -> Iterator[str]:
    yield f"<section><h2>Failed ({len(errors)})</h2><table><tr><th>image</th><th>while</th><th>why</th></tr>"
    for each in errors:
        cells = (each["image"], each.get("stage", ""), each.get("reason", ""))
        yield f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in cells)}</tr>"
    yield "</table></section>"


def _overlays(record: Record) -> list[str]:
    outputs = record.get("outputs", {})
    return [name for kind, name in outputs.items() if kind.partition("_")[0] == "overlay"]


def _card(record: Record, pictures: Sequence[tuple[str, bytes]], number_of: dict[str, int]) -> str:
    keys = " ".join(str(number_of[name]) for name in names_in(record))
    shown = "".join(
        f'<a href="{escape(quote(name, errors="surrogateescape"))}">'
        f'<img alt="overlay of {escape(record["image"])}" '
        f'src="data:image/jpeg;base64,{base64.b64encode(content).decode()}"></a>'
        for name, content in pictures
    )
    size = f"{record['width']} × {record['height']} · {_seconds(record)}"
    return (
        f'<article data-k=" {keys} " data-name="{escape(record["image"])}">{shown}'
        f"<h3>{escape(record['image'])}</h3><p>{escape(in_words(record))}</p><small>{size}</small></article>\n"
    )


def _seconds(record: Record) -> Any:
    return f"{record.get('seconds', 0.0):.2f} s"
