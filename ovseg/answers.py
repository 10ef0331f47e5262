"""What one image answers to the tasks that it was asked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ovseg.anomaly_results import AnomalyMap
from ovseg.counting_results import Counts
from ovseg.detection_results import Detections
from ovseg.errors import ConfigError, unknown_name
from ovseg.panoptic_results import Panoptic
from ovseg.results import Segmentation

#: A class for every pixel; objects and stuff one by one; boxes with masks; what is out of order; how many.
Task = Literal["segment", "instances", "detect", "anomaly", "count"]
TASKS: tuple[Task, ...] = get_args(Task)
#: Where `Answers` has the result of each.
FIELDS: dict[Task, str] = {
    "segment": "segmentation",
    "instances": "instances",
    "detect": "detections",
    "anomaly": "anomaly",
    "count": "counts",
}


@dataclass(frozen=True)
class Answers:
    """The results of one image; None where a task was not asked.

    Attributes:
        image_hw: pixels `(H, W)`.
        names: the classes that were asked for.
        segmentation, instances, detections, anomaly, counts: by task.
    """

    image_hw: tuple[int, int]
    names: tuple[str, ...]
    segmentation: Segmentation | None = None
    instances: Panoptic | None = None
    detections: Detections | None = None
    anomaly: AnomalyMap | None = None
    counts: Counts | None = None

    def of(self, task: Task) -> Any:
        """The result of a task.

        Raises:
            ConfigError: it was not asked.
        """
        found = getattr(self, FIELDS[task])
        if found is None:
            raise ConfigError(f"'{task}' is not among the tasks that were asked")
        return found


def check_tasks(tasks: str | Iterable[str]) -> tuple[Task, ...]:
    """Tasks by name, each once, in the order of `TASKS`.

    Args:
        tasks: "segment,count", or a list.

    Raises:
        ConfigError: none, or one that does not exist; the message lists them and the nearest match.
    """
    given = tasks.split(",") if isinstance(tasks, str) else tasks
    named = {each.strip() for each in given} - {""}
    for name in sorted(named):
        if name not in TASKS:
            raise unknown_name("task", name, TASKS)
    if not named:
        raise ConfigError(f"no task: name one or more of {', '.join(TASKS)}")
    return tuple(task for task in TASKS if task in named)
