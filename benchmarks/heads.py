"""What the heads cost beside the encoding: four tasks, other words from the cache, many classes.

CLIP's ViT-B/16 with random weights, so nothing is downloaded; words are features of the image's own patches,
so that score maps have regions as real ones do. Run by `tools/benchmark.py --suite heads`, each case in a
process of its own:

    python benchmarks/heads.py '{"case": "tasks", "size_hw": [375, 500], "repeats": 3}'
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
from methods import Case, clip_tower

from ovseg.answers import Task
from ovseg.encoders.clip import ClipEncoder
from ovseg.feature_cache import FeatureCache, image_key
from ovseg.heads.detection import DetectionHead
from ovseg.images import read_image
from ovseg.methods import build_method
from ovseg.resampling import Resampling
from ovseg.scorer import Scorer
from ovseg.structures import DenseFeatures, TextBank
from ovseg.tasks import TaskHeads, Words
from ovseg.windows import resize_image

IMAGE = Path(__file__).resolve().parents[1] / "demo" / "images" / "desk.jpg"
FOUR: tuple[Task, ...] = ("segment", "detect", "anomaly", "count")
CLASSES = 20


def picture(size_hw: tuple[int, int]) -> np.ndarray:
    """A demo image, resized."""
    return resize_image(read_image(IMAGE), size_hw)


def build_scorer(case: Case) -> Scorer:
    """SCLIP at its VOC settings."""
    torch.manual_seed(0)
    tower = ClipEncoder(clip_tower((224, 224), tiny=case.tiny)).eval().requires_grad_(False)
    return build_method("sclip", tower).eval().to(case.device)


def words_of(features: DenseFeatures, classes: int = CLASSES) -> Words:
    """As many words as classes, a background and two states: features of patches, a little off."""
    cells = features.grid[0].flatten(1).T
    torch.manual_seed(0)
    near = cells[torch.randint(len(cells), (classes + 3,))]
    chosen = F.normalize(near + 0.02 * torch.randn(near.shape).to(near), dim=1)
    names = tuple(f"class {number}" for number in range(classes))
    asked = TextBank(chosen[:classes], torch.arange(classes), names)
    closed = TextBank(
        chosen[: classes + 1], torch.arange(classes + 1), (*names, "background"), frozenset({classes})
    )
    states = TextBank(chosen[-2:], torch.arange(2), ("normal", "abnormal"))
    return Words(asked, closed, states=states, things=(None,) * classes)


def ask(scorer: Scorer, heads: TaskHeads, features: DenseFeatures, words: Words, tasks: Any) -> None:
    """The tasks' answers."""
    heads(features, words, tasks, scorer.score, scorer.score)


@torch.no_grad()
def measure_tasks(case: Case) -> dict[str, float]:
    """Encoding with segmentation, with four tasks; other words from a cached file. In turns."""
    scorer, heads, image = build_scorer(case), TaskHeads(), picture(case.size_hw)

    def encode() -> DenseFeatures:
        return scorer.encode(scorer.prepare([image]), case.size_hw)

    features = encode()
    words = words_of(features)
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(folder, {})
        cache.save(image_key(image), features)

        def again() -> None:
            kept = cache.load(image_key(image))
            assert kept is not None
            ask(scorer, heads, kept.to(case.device), words, ("segment",))

        ways = {
            "segment": lambda: ask(scorer, heads, encode(), words, ("segment",)),
            "four": lambda: ask(scorer, heads, encode(), words, FOUR),
            "again": again,
            "alone": lambda: ask(scorer, heads, features, words, ("segment",)),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way()
        for _ in range(case.repeats):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


@torch.no_grad()
def measure_classes(case: Case, classes: int) -> dict[str, float]:
    """Peak memory of detection above the features, MB, and its time."""
    torch.manual_seed(0)
    cells_hw = (42, 63)
    coarse = torch.randn(1, 512, 6, 9)
    grid = F.interpolate(coarse, cells_hw, mode="bilinear")
    features = DenseFeatures(F.normalize(grid, dim=1), Resampling.bilinear(cells_hw, case.size_hw))
    tower = ClipEncoder(clip_tower((224, 224), tiny=True)).eval()
    scorer, head = build_method("sclip", tower), DetectionHead()
    few = words_of(features, 3)
    head(scorer.score(features, few.closed))  # what is loaded once
    words = words_of(features, classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = head(scorer.score(features, words.closed))
    taken = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"extra_mb": (peak - before) / 1024, "seconds": taken, "found": float(len(found[0]))}


def main() -> None:
    """One case, as JSON."""
    given = json.loads(sys.argv[1])
    kind = given.pop("case")
    classes = given.pop("classes", 80)
    case = Case(method="sclip", **{**given, "size_hw": tuple(given["size_hw"])})
    if case.threads:
        torch.set_num_threads(case.threads)
    print(json.dumps(measure_tasks(case) if kind == "tasks" else measure_classes(case, classes)))


if __name__ == "__main__":
    main()
