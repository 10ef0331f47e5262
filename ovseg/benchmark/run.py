"""All parts of the heads' benchmark, kept as they are measured."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ovseg.benchmark.anomalies import measure_anomalies
from ovseg.benchmark.objects import mean_count_of_val, measure_boxes, measure_counts, predictor
from ovseg.benchmark.page import Measured
from ovseg.benchmark.records import measured
from ovseg.errors import ConfigError
from ovseg.scenes.inspection import KINDS


def settings_of(
    *,
    seeds: Sequence[int] = (0, 1, 2),
    num_scenes: int = 16,
    num_inspected: int = 8,
    good: int = 8,
    regions: bool = False,
) -> dict[str, Any]:
    """How much is measured, and with what.

    Args:
        seeds: of the scenes.
        num_scenes: of splits `test` and `counting`, each seed.
        num_inspected: of each product, each seed.
        good: good images of each product.
        regions: also classify SAM's automatic masks, which takes minutes a scene on a slow CPU.

    Raises:
        ConfigError: nothing to measure.
    """
    if not seeds or min(num_scenes, num_inspected) < 2 or good < 1:
        raise ConfigError(
            f"give a seed, two scenes and a good image at least: got seeds {list(seeds)}, {num_scenes} and "
            f"{num_inspected} scenes, {good} good images"
        )
    return {
        "seeds": list(seeds),
        "num_scenes": num_scenes,
        "num_inspected": num_inspected,
        "good": good,
        "regions": regions,
    }


def measure(settings: dict[str, Any], *, keep: Path | None = None) -> Measured:
    """Records of boxes (with rejection), counts and anomalies.

    Args:
        settings: see `settings_of`.
        keep: folder where each part, product and seed is saved, and read back where nothing but the code has
            changed.
    """
    seeds, number = settings["seeds"], settings["num_scenes"]
    described = predictor().describe()
    mean_count = mean_count_of_val()
    parts: dict[str, tuple[Any, dict[str, Any]]] = {
        "counts": (measure_counts, {"num_scenes": number, "mean_count": mean_count}),
        "boxes": (measure_boxes, {"num_scenes": number, "regions": settings["regions"]}),
    }
    inspected = {"num_scenes": settings["num_inspected"], "good": settings["good"]}
    for kind in KINDS:
        parts[kind] = measure_anomalies, inspected | {"kinds": [kind]}
    found = {
        part: measured(
            part.replace(" ", "_"), seeds, options | {"models": described}, partial(each, **options), keep
        )
        for part, (each, options) in parts.items()
    }
    inspections = [found.pop(kind) for kind in KINDS]
    found["anomalies"] = {
        row: [[record for each in inspections for record in each[row][seed]] for seed in range(len(seeds))]
        for row in inspections[0]
    }
    return found
