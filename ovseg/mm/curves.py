"""The curve of a training as a picture, from what mmengine's local backend has written down."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

#: Numbers that are logged and are no curve of learning.
_ASIDE = ("step", "iter", "epoch", "time", "data_time", "memory", "lr", "base_lr", "grad_norm")


def read_curves(work_dir: Path) -> dict[str, dict[int, float]]:
    """Every logged number by iteration; where a resumed run repeats iterations, its numbers count.

    Args:
        work_dir: of the training; its runs' `<time>/vis_data/scalars.json` are read in order.
    """
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted(Path(work_dir).glob("*/vis_data/scalars.json")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry: dict[str, Any] = json.loads(line)
            except ValueError:  # the last line of a run that was killed
                continue
            for name, value in entry.items():
                if name not in _ASIDE and isinstance(value, int | float):
                    curves[name][int(entry["step"])] = float(value)
    return {name: dict(sorted(points.items())) for name, points in curves.items()}


def draw_curves(work_dir: Path, target: Path | None = None) -> Path | None:
    """Losses on the left, figures of the validation on the right.

    Args:
        work_dir: see `read_curves`.
        target: by default `work_dir/curve.png`.

    Returns:
        The picture, or None where nothing was logged.
    """
    curves = read_curves(work_dir)
    losses = {name: points for name, points in curves.items() if "loss" in name}
    figures = {name: points for name, points in curves.items() if name not in losses and len(points) > 0}
    panels = [(title, group) for title, group in (("loss", losses), ("validation", figures)) if group]
    if not panels:
        return None
    figure = Figure(figsize=(5.5 * len(panels), 3.6), layout="constrained")
    for axes, (title, group) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, points in group.items():
            axes.plot(list(points), list(points.values()), label=name, marker="." if len(points) < 20 else "")
        axes.set_xlabel("iteration")
        axes.set_title(title)
        axes.grid(alpha=0.3)
        axes.set_xlim(left=0)
        axes.legend(fontsize="small")
    target = target or Path(work_dir) / "curve.png"
    figure.savefig(target, dpi=110)
    return target
