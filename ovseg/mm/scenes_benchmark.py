"""Methods over held-out scenes, several seeds of them: the accuracy benchmark that needs no data."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from mmengine.config import Config
from tqdm import tqdm

from ovseg.errors import ConfigError
from ovseg.inferencer import Inferencer
from ovseg.metrics import IoU, IoUReport
from ovseg.mm.build import inferencer_from_config, model_of, templates_of
from ovseg.scenes import SceneSet


@dataclass(frozen=True)
class SceneScores:
    """What a method reached.

    Attributes:
        method: its name.
        reports: figures by seed.
        classes: the split's class names.
        seconds_per_image: without drawing the scene and without encoding the words.
        describe: all that changes results, see `Inferencer.describe`.
        notice: what the encoder wants to be known of it, or None.
    """

    method: str
    reports: tuple[IoUReport, ...]
    classes: tuple[str, ...]
    seconds_per_image: float
    describe: dict[str, Any]
    notice: str | None

    @property
    def mean_iou(self) -> tuple[float, float]:
        """Mean over the seeds, and their standard deviation (of a sample; 0 for one seed)."""
        return _mean_and_spread([report.mean_iou for report in self.reports])

    @property
    def pixel_accuracy(self) -> tuple[float, float]:
        """Mean over the seeds, and their standard deviation."""
        return _mean_and_spread([report.pixel_accuracy for report in self.reports])

    @property
    def per_class(self) -> Float[np.ndarray, " K"]:
        """Each class's IoU, mean over the seeds in which it occurs."""
        table = np.stack([report.per_class for report in self.reports])
        known = ~np.isnan(table)
        total = np.where(known, table, 0).sum(axis=0)
        return np.divide(total, known.sum(axis=0), out=np.full(total.shape, np.nan), where=known.any(axis=0))


def score_on_scenes(
    config: Config,
    *,
    split: str = "test",
    seeds: Sequence[int] = (0, 1, 2),
    num_scenes: int = 64,
    encoder: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    progress: bool = True,
) -> SceneScores:
    """Tests one method; the Runner gives the same figures for the same scenes.

    Args:
        config: a `<method>_bundled_scenes.py`; its method options, head, templates and scene size are used.
        split: of the scenes; the classes are the split's own.
        seeds: which sets of scenes.
        num_scenes: in each.
        encoder, weights, device, dtype: see `inferencer_from_config`.
        progress: show a bar where stderr is a terminal.

    Raises:
        ConfigError: no seed, or the config is not for scenes.
    """
    if not seeds:
        raise ConfigError("at least one seed of scenes is needed")
    dataset = config.get("test_dataloader", {}).get("dataset", {})
    if dataset.get("type") != "ScenesDataset":
        raise ConfigError(
            f"config {config.filename or ''} is not for scenes: its dataset is {dataset.get('type')}"
        )
    sets = [SceneSet(split, seed, length=num_scenes, size_hw=tuple(dataset["size_hw"])) for seed in seeds]
    if not num_scenes:
        raise ConfigError("at least one scene is needed")
    inferencer = inferencer_from_config(config, encoder=encoder, weights=weights, device=device, dtype=dtype)
    method = model_of(config)["method"]
    name = method if isinstance(method, str) else str(method["type"])
    templates = templates_of(config)
    inferencer.bank(sets[0].classes, templates)
    quiet = not (progress and sys.stderr.isatty())
    seconds = 0.0
    reports = []
    with tqdm(total=len(seeds) * num_scenes, desc=name, unit="scene", disable=quiet, leave=False) as bar:
        for scenes in sets:
            report, spent = _one_seed(inferencer, scenes, templates, bar)
            reports.append(report)
            seconds += spent
    return SceneScores(
        method=name,
        reports=tuple(reports),
        classes=sets[0].classes,
        seconds_per_image=seconds / (len(seeds) * num_scenes),
        describe=inferencer.describe(),
        notice=inferencer.notice,
    )


def _one_seed(inferencer: Inferencer, scenes: SceneSet, templates: Any, bar: tqdm) -> tuple[IoUReport, float]:
    measured = IoU(len(scenes.classes))
    seconds = 0.0
    for index in range(len(scenes)):
        scene = scenes[index]
        begin = time.perf_counter()
        (result,) = inferencer([scene.image], scenes.classes, templates=templates)
        seconds += time.perf_counter() - begin
        measured.update(result.labels, scene.labels)
        bar.update()
    return measured.report(), seconds


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
