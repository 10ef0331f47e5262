"""Methods over held-out scenes, several seeds of them: the accuracy benchmark that needs no data."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Integer
from mmengine.config import Config
from tqdm import tqdm

from ovseg.errors import ConfigError
from ovseg.inferencer import Inferencer
from ovseg.metrics import BoundaryF, IoU, IoUReport
from ovseg.mm.build import inferencer_from_config, load_config, model_of, templates_of
from ovseg.pages import commit, device_name
from ovseg.scenes import SceneSet


@dataclass(frozen=True)
class SceneScores:
    """What a method reached.

    Attributes:
        method: its name.
        refine: the refinement that was asked for ("none", "pamr", "sam" ...); None: the method's own.
        counts: by seed each scene's hits, predicted and true pixels of every class (`IoU.counts`).
        boundary_by_seed: boundary F-scores.
        classes: the split's class names.
        seconds_per_image: median, without drawing the scene and without encoding the words.
        settings: all that changes these figures: the scenes, the templates, and `Inferencer.describe`.
        commit: of the code that measured them.
        notice: what the encoder wants to be known of it, or None.
        example: labels of the scene that was to be shown, or None.
    """

    method: str
    refine: str | None
    counts: tuple[Int[np.ndarray, "_ 3 K"], ...]
    boundary_by_seed: tuple[float, ...]
    classes: tuple[str, ...]
    seconds_per_image: float
    settings: dict[str, Any]
    commit: str
    notice: str | None = None
    example: Integer[np.ndarray, "H W"] | None = None

    @cached_property
    def reports(self) -> tuple[IoUReport, ...]:
        """IoU by seed."""
        return tuple(IoU.from_counts(each.sum(axis=0)).report() for each in self.counts)

    @property
    def name(self) -> str:
        """The method and what refines it, as a row is called."""
        if self.refine is None:
            own = self.settings["refine"]
            return f"{self.method} (with {', '.join(own)})" if own else self.method
        steps = [] if self.refine == "none" else [each.strip().upper() for each in self.refine.split(",")]
        return " + ".join([self.method, *steps])

    @property
    def mean_iou(self) -> tuple[float, float]:
        """Mean over the seeds, and their standard deviation (of a sample; 0 for one seed)."""
        return _mean_and_spread([report.mean_iou for report in self.reports])

    @property
    def boundary_f(self) -> tuple[float, float]:
        """Mean over the seeds, and their standard deviation."""
        return _mean_and_spread(self.boundary_by_seed)

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

    def save(self, folder: Path) -> None:
        """Keeps the figures as a file of their own."""
        folder.mkdir(parents=True, exist_ok=True)
        told = {each.name: getattr(self, each.name) for each in fields(self)}
        arrays = {f"counts_{seed}": each for seed, each in enumerate(told.pop("counts"))}
        if (example := told.pop("example")) is not None:
            arrays["example"] = example
        with open(folder / f"{self.method}_{self.refine or 'own'}.npz", "wb") as file:
            np.savez_compressed(file, told=np.array(json.dumps(told)), **arrays)

    @classmethod
    def kept(
        cls, folder: Path, method: str, refine: str | None, settings: dict[str, Any]
    ) -> SceneScores | None:
        """A row's figures as they were saved; None where there are none of these very settings."""
        path = folder / f"{method}_{refine or 'own'}.npz"
        if not path.is_file():
            return None
        with np.load(path) as arrays:
            told = json.loads(str(arrays["told"]))
            if told["settings"] != json.loads(json.dumps(settings)):
                return None
            told["counts"] = tuple(arrays[f"counts_{seed}"] for seed in range(len(settings["seeds"])))
            told["example"] = arrays.get("example")
        told["boundary_by_seed"], told["classes"] = tuple(told["boundary_by_seed"]), tuple(told["classes"])
        return cls(**told)


def scene_sets(
    config: Config, *, split: str = "test", seeds: Sequence[int] = (0, 1, 2), num_scenes: int = 64
) -> list[SceneSet]:
    """The scenes of each seed, at a config's size.

    Raises:
        ConfigError: no seed, no scene, or the config is not for scenes.
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
    return sets


def score_on_scenes(
    config: Config,
    *,
    split: str = "test",
    seeds: Sequence[int] = (0, 1, 2),
    num_scenes: int = 64,
    refine: str | None = None,
    example: int | None = None,
    keep: Path | None = None,
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
        refine: "none", "pamr", "sam" ... in the place of the method's own refinement; None keeps that.
        example: the scene of the first seed whose labels are to be kept.
        keep: folder where figures are saved, and read back where nothing but the code has changed.
        encoder, weights, device, dtype: see `inferencer_from_config`.
        progress: show a bar where stderr is a terminal.

    Raises:
        ConfigError: no seed, or the config is not for scenes.
    """
    sets = scene_sets(config, split=split, seeds=seeds, num_scenes=num_scenes)
    if refine is not None:
        config = load_config(config, {"model.method.refine": refine})
    inferencer = inferencer_from_config(config, encoder=encoder, weights=weights, device=device, dtype=dtype)
    templates = templates_of(config)
    method = model_of(config)["method"]
    settings = {
        "split": split,
        "seeds": list(seeds),
        "num_scenes": num_scenes,
        "size_hw": list(sets[0].size_hw),
        "templates": templates,
        "example": example,
        "device": device_name(inferencer.scorer.device),
        **inferencer.describe(),
    }
    scores = SceneScores(
        method=method if isinstance(method, str) else str(method["type"]),
        refine=refine,
        counts=(),
        boundary_by_seed=(),
        classes=sets[0].classes,
        seconds_per_image=0.0,
        settings=settings,
        commit=commit(),
        notice=inferencer.notice,
    )
    if keep is not None and (kept := SceneScores.kept(keep, scores.method, refine, settings)):
        return kept
    inferencer.bank(sets[0].classes, templates)
    quiet = not (progress and sys.stderr.isatty())
    seconds: list[float] = []
    counts, boundaries = [], []
    with tqdm(
        total=len(seeds) * num_scenes, desc=scores.name, unit="scene", disable=quiet, leave=False
    ) as bar:
        for scenes in sets:
            measured, boundary = _one_seed(inferencer, scenes, templates, seconds, bar)
            counts.append(measured)
            boundaries.append(boundary)
    shown = None
    if example is not None:
        (result,) = inferencer(
            [sets[0].render(example, sets[0].size_hw).image], sets[0].classes, templates=templates
        )
        shown = result.labels
    scores = replace(
        scores,
        counts=tuple(counts),
        boundary_by_seed=tuple(boundaries),
        seconds_per_image=float(np.median(seconds)),
        example=shown,
    )
    if keep is not None:
        scores.save(keep)
    return scores


def _one_seed(
    inferencer: Inferencer, scenes: SceneSet, templates: Any, seconds: list[float], bar: tqdm
) -> tuple[np.ndarray, float]:
    """Counts of every scene, and the boundary F-score."""
    boundary = BoundaryF(len(scenes.classes))
    counts = []
    for index in range(len(scenes)):
        scene = scenes[index]
        begin = time.perf_counter()
        (result,) = inferencer([scene.image], scenes.classes, templates=templates)
        seconds.append(time.perf_counter() - begin)
        measured = IoU(len(scenes.classes))
        measured.update(result.labels, scene.labels)
        counts.append(measured.counts)
        boundary.update(result.labels, scene.labels)
        bar.update()
    return np.stack(counts), boundary.report().mean_f


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
