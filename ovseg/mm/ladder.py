"""The accuracy ladder as tables: method by method, with and without refinement."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence

from ovseg.metrics import paired_interval
from ovseg.mm.scenes_benchmark import SceneScores
from ovseg.pages import PageSection, markdown_table

#: Where `tools/test.py --write` puts its tables.
SCENES = PageSection("scenes", "tools/test.py")
LADDER = PageSection("ladder", "tools/test.py --ladder")

#: What each method is measured with on the ladder.
REFINEMENTS = ("none", "pamr", "sam")

_ORDER = (
    "clip",
    "maskclip",
    "sclip",
    "clearclip",
    "naclip",
    "rgb-control",
    "proxyclip",
    "clip-dinoiser",
    "sc-clip",
    "corrclip",
    "trident",
)


def in_order(methods: Iterable[str]) -> list[str]:
    """From plain CLIP upwards; methods that the ladder does not know come last, as they were given."""
    given = list(dict.fromkeys(methods))
    return [name for name in _ORDER if name in given] + [name for name in given if name not in _ORDER]


def percent(mean_and_spread: tuple[float, float]) -> str:
    """Mean ± standard deviation, in percent."""
    mean, spread = mean_and_spread
    return f"{100 * mean:.1f} ± {100 * spread:.1f}"


def table(found: Sequence[SceneScores]) -> list[str]:
    """Figures of every row, as Markdown."""
    heads = ["method", "mIoU (%)", "boundary F (%)", "pixel accuracy (%)", "ms per image"]
    rows = [
        (
            each.name,
            percent(each.mean_iou),
            percent(each.boundary_f),
            percent(each.pixel_accuracy),
            _milliseconds(each),
        )
        for each in found
    ]
    return markdown_table(heads, rows)


def ladder_table(found: Sequence[SceneScores], *, resamples: int = 10_000) -> list[str]:
    """The rows with the difference to the rung below and its 95 % interval over scenes.

    A refined row is compared with the same method without refinement, any other with the method above it.
    """
    heads = ["method", "mIoU (%)", "gain in mIoU", "boundary F (%)", "ms per image"]
    rows = []
    for index, each in enumerate(found):
        rung = below(found, index)
        gain = "" if rung is None else gain_over(each, rung, resamples=resamples)
        rows.append((each.name, percent(each.mean_iou), gain, percent(each.boundary_f), _milliseconds(each)))
    return markdown_table(heads, rows)


def below(found: Sequence[SceneScores], index: int) -> SceneScores | None:
    """The row that a row is compared with; None for the first."""
    row = found[index]
    for other in reversed(found[:index]):
        if other.refine in (None, "none") and (other.method == row.method or row.refine in (None, "none")):
            return other
    return None


def gain_over(ours: SceneScores, theirs: SceneScores, *, resamples: int = 10_000) -> str:
    """Difference of mIoU in points, and its paired 95 % interval over scenes."""
    low, high = paired_interval(ours.counts, theirs.counts, resamples=resamples)
    gain = ours.mean_iou[0] - theirs.mean_iou[0]
    return f"{100 * gain:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def class_table(found: Sequence[SceneScores]) -> list[str]:
    """IoU of every class, row by row."""
    rows = []
    for index, name in enumerate(found[0].classes):
        values = [scores.per_class[index] for scores in found]
        rows.append((name, *("–" if math.isnan(value) else f"{100 * value:.1f}" for value in values)))
    return markdown_table(["class", *(scores.name for scores in found)], rows)


def section(found: Sequence[SceneScores], argv: Sequence[str], *, ladder: bool = False) -> list[str]:
    """What goes between the markers of a page."""
    told = found[0].settings
    seeds = ", ".join(str(seed) for seed in told["seeds"])
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    commits = ", ".join(dict.fromkeys(each.commit for each in found))
    gains = (
        "Gain: of a refined row over the same method without refinement, of the others over the method "
        "above, in points, with the 95 % interval of 10,000 paired resamples of the scenes. "
    )
    return [
        *(ladder_table(found) if ladder else table(found)),
        "",
        f"Split `{told['split']}`, {len(found[0].classes)} classes, {told['num_scenes']} scenes of each seed "
        f"({seeds}); mean ± standard deviation over the seeds. {gains if ladder else ''}Boundary F: within "
        f"0.75 % of the diagonal, mean over a scene's classes, then over scenes. Encoder "
        f"`{told['encoder']}`, weights sha256 `{str(told['weights_sha256'])[:16]}`. Times: median on "
        f"{told['device']}, without drawing the scene and encoding the words.",
        "",
        "```bash",
        f"python tools/test.py {shlex.join(argv)}",
        "```",
        "",
        f"Commit {commits}; {versions}.",
    ]


def _milliseconds(scores: SceneScores) -> str:
    return f"{1000 * scores.seconds_per_image:.0f}"
