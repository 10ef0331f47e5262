"""Answers as the page shows them: a picture, and beside it, not on it, a legend."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ovseg.answers import Answers, Task
from ovseg.demo.engine import Asked, Picture
from ovseg.demo.explain import Spot
from ovseg.demo.settings import Settings
from ovseg.outputs.drawing import count_overlay, detection_overlay
from ovseg.outputs.heat_maps import anomaly_overlay
from ovseg.outputs.palette import Color, class_colors
from ovseg.outputs.visualize import entries, overlay, segmentation_colors

#: Lines of a legend, at most.
MAX_LINES = 24


def picture_of(
    image: UInt8[np.ndarray, "H W 3"], answers: Answers, task: Task, settings: Settings
) -> Image.Image:
    """The image with the answer on it."""
    style: dict[str, Any] = {"opacity": settings.opacity, "legend": False, "scheme": settings.scheme}
    found = answers.of(task)
    if task == "segment":
        return overlay(image, found, **style)
    if task == "detect":
        return detection_overlay(image, found, **style)
    if task == "count":
        return count_overlay(image, found, **style)
    return anomaly_overlay(image, found, opacity=settings.opacity, scale=False)


def summary_of(answers: Answers, task: Task) -> dict[str, Any]:
    """The answer in numbers, JSON-ready."""
    found = answers.of(task)
    if task == "segment":
        return {"shares": found.shares()}
    if task == "detect":
        objects = [
            {"name": found.names[label], "score": float(score), "box_xyxy": box.tolist()}
            for label, score, box in zip(found.labels.tolist(), found.scores, found.boxes_xyxy, strict=True)
        ]
        return {"objects": objects, "numbers": found.counts()}
    if task == "count":
        return {"numbers": {name: number for name, number in found.numbers().items() if number > 0}}
    return found.summary()


def legend_of(answers: Answers, task: Task, settings: Settings) -> str:
    """The classes found with their colours and numbers, as HTML."""
    if task == "anomaly":
        return _verdict(answers)
    found = answers.of(task)
    if task == "segment":
        colors = segmentation_colors(found, settings.scheme)
        lines = [(each.name, each.color, each.share, each.value) for each in entries(found, colors)]
        return _lines(lines, "nothing")
    numbers = summary_of(answers, task)["numbers"]
    palette = _palette(answers, task, settings)
    most = max(numbers.values(), default=1)
    ordered = sorted(numbers.items(), key=lambda item: -item[1])
    lines = [(name, palette[name], number / most, f"{number:.4g}") for name, number in ordered]
    return _lines(lines, "nothing of these was found")


def bars_of(spot: Spot) -> str:
    """The classes' scores at a spot, as HTML."""
    lines = [
        f'<li><span class="name" title="{escape(name)}">{escape(name)}</span>'
        f'<span class="track"><span style="width:{100 * probability:.1f}%"></span></span>'
        f'<span class="value">{probability:.1%}</span>'
        f'<span class="cosine" title="cosine of the patch and the words">{cosine:+.3f}</span></li>'
        for name, probability, cosine in list(zip(spot.names, spot.probabilities, spot.cosines, strict=True))[
            :12
        ]
    ]
    more = len(spot.names) - len(lines)
    rest = f'<p class="more">and {more} more</p>' if more else ""
    head = '<p class="caption">Probability and cosine of each class at the spot</p>'
    return f'{head}<ul class="bars">{"".join(lines)}</ul>{rest}'


def status_of(picture: Picture, asked: Asked | None, settings: Settings, seconds: float) -> str:
    """What was done, and how long it took, as HTML."""
    (height, width), (given_h, given_w) = picture.hw, picture.given_hw
    size = f"{width}×{height}"
    if picture.hw != picture.given_hw:
        size = f"{given_w}×{given_h} scaled down to {size}"
    parts = [f"<b>{escape(settings.method)}</b> · {escape(settings.encoder)}", size]
    if asked is not None:
        how = f"encoded in {_seconds(asked.encode_s)}" if asked.encode_s else "features reused"
        parts += [how, f"answered in {_seconds(asked.answer_s)}"]
    parts.append(f"{_seconds(seconds)} in all")
    return (
        '<p class="status">'
        + '<span class="dot">·</span>'.join(f"<span>{each}</span>" for each in parts)
        + "</p>"
    )


def problem_of(message: str) -> str:
    """What went wrong, as HTML."""
    return f'<p class="status problem" role="alert">{escape(message)}</p>'


def _verdict(answers: Answers) -> str:
    found = answers.of("anomaly")
    word = {None: "no threshold: the map's own range is shown", True: "anomalous", False: "normal"}[
        found.label
    ]
    score = found.score if found.normalised_score is None else found.normalised_score
    share = "" if found.mask is None else f" · {found.mask.mean():.1%} of the pixels"
    return f'<p class="verdict"><b>{escape(word)}</b> · score {score:.3g}{share}</p>'


def _palette(answers: Answers, task: Task, settings: Settings) -> dict[str, Color]:
    found = answers.of(task)
    names = [each.name for each in found.classes] if task == "count" else list(found.names)
    return dict(zip(names, class_colors(names, (), None, settings.scheme), strict=True))


def _lines(lines: Sequence[tuple[str, Color, float, str]], nothing: str) -> str:
    if not lines:
        return f'<p class="more">{nothing}</p>'
    items = [
        f'<li><span class="swatch" style="background:rgb{color}"></span>'
        f'<span class="name" title="{escape(name)}">{escape(name)}</span>'
        f'<span class="track"><span style="width:{100 * share:.1f}%;background:rgb{color}"></span></span>'
        f'<span class="value">{escape(value)}</span></li>'
        for name, color, share, value in lines[:MAX_LINES]
    ]
    more = len(lines) - len(items)
    rest = f'<p class="more">and {more} more</p>' if more else ""
    return f'<ul class="legend">{"".join(items)}</ul>{rest}'


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"
