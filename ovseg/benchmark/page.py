"""The figures as tables: every head, what it beats, and by how much."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from ovseg.benchmark import anomalies as damage
from ovseg.benchmark import figures, objects
from ovseg.benchmark.figures import Metric, Records, gain, over_seeds
from ovseg.pages import PageSection, commit, markdown_table

#: Where `tools/test.py --heads --write` puts its tables.
HEADS = PageSection("heads", "tools/test.py --heads")

Measured = dict[str, dict[str, Records]]


def section(found: Measured, settings: dict[str, Any], argv: Sequence[str]) -> list[str]:
    """What goes between the markers of a page."""
    seeds = ", ".join(str(seed) for seed in settings["seeds"])
    return [
        *verdicts(found),
        "",
        *boxes_table(found["boxes"]),
        "",
        *counts_table(found["counts"]),
        "",
        *anomaly_table(found["anomalies"]),
        "",
        f"Seeds {seeds}; of each {settings['num_scenes']} scenes of the splits `test` and `counting`, and of "
        f"every product {settings['good']} good images and {settings['num_inspected']} to judge, about half "
        f"of them damaged. Mean ± standard deviation over the seeds; gains with the 95 % interval of "
        f"{figures.RESAMPLES} paired resamples of the scenes.",
        "",
        "```bash",
        f"python tools/test.py {shlex.join(argv)}",
        "```",
        "",
        f"Written at commit {commit()}.",
    ]


def verdicts(found: Measured) -> list[str]:
    """A line for each head: its figure, the trivial answer's, and whether the gain is clear."""
    boxes, counts, inspected = found["boxes"], found["counts"], found["anomalies"]
    box, mask = figures.ap50("box"), figures.ap50("mask")
    plain_boxes, colours = boxes[objects.PLAIN], inspected[damage.GOOD_COLOUR]
    constant = [[each | {"score": 0.0} for each in seed] for seed in inspected[damage.WORDS]]
    Row = tuple[str, str, Metric, Records, str, Records]
    rows: list[Row] = [
        ("detect", "box AP50 (%)", box, boxes[objects.BOXES], objects.PLAIN, plain_boxes),
        ("instances", "mask AP50 (%)", mask, boxes[objects.INSTANCES], objects.PLAIN, plain_boxes),
        ("count", "MAE", figures.negative_mae, counts[objects.COUNT], objects.MEAN, counts[objects.MEAN]),
    ]
    if objects.REGIONS in boxes:
        rows.append(
            (objects.REGIONS, "mask AP50 (%)", mask, boxes[objects.REGIONS], objects.PLAIN, plain_boxes)
        )
    for row in (damage.WORDS, *damage.METHODS):
        few = row in damage.FEW_SHOT
        trivial, theirs = (damage.GOOD_COLOUR, colours) if few else ("chance", constant)
        ours = inspected[row]
        rows.append((f"anomaly: {row}", "image AUROC (%)", figures.image_auroc, ours, trivial, theirs))
    for rule in objects.RULES:
        ours = [[{"auroc": each[rule]} for each in seed] for seed in boxes["rejection"]]
        chance = [[{"auroc": None if one["auroc"] is None else 0.5} for one in seed] for seed in ours]
        rows.append((f"reject: {rule}", "pixel AUROC (%)", figures.mean_of("auroc"), ours, "chance", chance))
    cells = []
    for head, what, metric, ours, trivial, theirs in rows:
        better = gain(metric, ours, theirs)
        factor, digits = (1, 2) if what == "MAE" else (100, 1)
        mine, other = (factor * abs(over_seeds(metric, each)[0]) for each in (ours, theirs))
        value, low, high = (
            f"{factor * each:+.{digits}f}" for each in (better.value, better.low, better.high)
        )
        cells.append(
            (
                head,
                what,
                f"{mine:.{digits}f}",
                f"{other:.{digits}f} ({trivial})",
                f"{value} [{low}, {high}]",
                "yes" if better.clear else "**no**",
            )
        )
    return markdown_table(["head", "figure", "reached", "trivial answer", "gain", "clear?"], cells, left=2)


def boxes_table(boxes: dict[str, Records]) -> list[str]:
    """Boxes and masks."""
    rows = [
        (
            row,
            percent(figures.ap50("box"), records),
            percent(figures.ap50("mask"), records),
            f"{over_seeds(figures.mean_of('number'), records)[0]:.1f}",
        )
        for row, records in boxes.items()
        if row != "rejection"
    ]
    true = np.mean([len(each["truth"]) for seed in boxes[objects.BOXES] for each in seed])
    heads = ["40 objects asked for", "box AP50 (%)", "mask AP50 (%)", f"objects found (true: {true:.1f})"]
    return markdown_table(heads, rows)


def counts_table(counts: dict[str, Records]) -> list[str]:
    """Numbers of objects."""
    rows = [
        (
            row,
            plain(figures.negative_mae, counts[row], -1),
            plain(figures.rmse, counts[row]),
            plain(figures.never_there, counts[row]),
        )
        for row in (objects.MEAN, objects.COUNT, objects.COUNT_SHOWN)
    ]
    return markdown_table(["counting", "MAE", "RMSE", "objects of kinds that are not there"], rows)


def anomaly_table(inspected: dict[str, Records]) -> list[str]:
    """Damage, found in images and in pixels; what sees good images comes last."""
    names = ("pixel_auroc", "aupro", "aupro_200")
    rows = []
    for row in sorted(inspected, key=lambda row: row in damage.FEW_SHOT):
        pixels = (percent(figures.mean_of(name), inspected[row]) for name in names)
        rows.append((row, percent(figures.image_auroc, inspected[row]), *pixels))
    heads = ["anomaly", "image AUROC (%)", "pixel AUROC (%)", "AUPRO (%)", "AUPRO as CLIP papers (%)"]
    return markdown_table(heads, rows)


def percent(metric: Metric, records: Records) -> str:
    """Mean ± standard deviation over the seeds, in percent."""
    mean, spread = over_seeds(metric, records)
    return f"{100 * mean:.1f} ± {100 * spread:.1f}"


def plain(metric: Metric, records: Records, factor: int = 1) -> str:
    """Mean ± standard deviation over the seeds."""
    mean, spread = over_seeds(metric, records)
    return f"{factor * mean:.2f} ± {spread:.2f}"
