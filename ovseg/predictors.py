"""What a run asks: an inferencer for most tasks, one of its own for anomalies, or both as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, get_args

from torch import nn

from ovseg.answers import TASKS, Answers, Task, check_tasks
from ovseg.errors import ConfigError, unknown_name
from ovseg.heads.anomaly import AnomalyHead
from ovseg.heads.counting import CountingHead
from ovseg.heads.detection import DetectionHead
from ovseg.heads.image_rejection import ImageRejection
from ovseg.heads.instances import InstanceHead
from ovseg.heads.rejection import NEEDS_NO, NO_TOWER, Rejection, Rule
from ovseg.heads.segmentation import SegmentationHead
from ovseg.tasks import TaskHeads

HEADS: dict[Task, Callable[..., Any]] = {
    "segment": SegmentationHead,
    "instances": InstanceHead,
    "detect": DetectionHead,
    "anomaly": AnomalyHead,
    "count": CountingHead,
}
REJECTIONS: tuple[str, ...] = get_args(Rule)
#: Heads that ask how probable a pixel is.
WITH_THRESHOLD: tuple[Task, ...] = ("segment", "detect", "count")


class Together:
    """Two predictors as one: `anomaly` is asked of the second, everything else of the first."""

    def __init__(self, first: Any, anomaly: Any) -> None:
        self.first, self.anomaly = first, anomaly
        self.device = first.device
        self.notice = first.notice or anomaly.notice

    def describe(self) -> dict[str, Any]:
        """What both say of themselves."""
        return {**self.first.describe(), "anomaly": self.anomaly.describe()}

    def bank(self, classes: Any, templates: Any = "imagenet80") -> Any:
        """The first one's words."""
        return self.first.bank(classes, templates)

    def answers(
        self,
        images: Iterable[Any],
        classes: Any,
        *,
        tasks: Sequence[Task],
        batch_size: int | None = None,
        templates: Any = "imagenet80",
        **given: Any,
    ) -> Iterator[Answers]:
        """Results, in order."""
        source = iter(images)
        rest = tuple(task for task in tasks if task != "anomaly")
        while batch := list(islice(source, batch_size or 1)):
            options = {"batch_size": batch_size, "templates": templates}
            found = self.first.answers(iter(batch), classes, tasks=rest, **options, **given)
            if "anomaly" not in tasks:
                yield from found
                continue
            wrong = self.anomaly.answers(iter(batch), "object", tasks=("anomaly",), **options)
            for one, other in zip(found, wrong, strict=True):
                yield replace(one, anomaly=other.anomaly)


def build_heads(
    options: Mapping[str, Any] | None = None,
    *,
    threshold: float | None = None,
    area_threshold: float | None = None,
    keep_scores: bool = False,
    anomaly_threshold: Any = None,
    scenes: int = 0,
) -> TaskHeads:
    """Heads with options of their own.

    Args:
        options: by task and option: `{"detect.min_score": 0.3, "count.prominence": 0.2}`.
        threshold: of all heads that have one.
        area_threshold, keep_scores: see `SegmentationHead`.
        anomaly_threshold: an `AnomalyThreshold`, or None.
        scenes: see `TaskHeads`.

    Raises:
        ConfigError: no such task or option.
    """
    chosen: dict[Task, dict[str, Any]] = {task: {} for task in TASKS}
    if threshold is not None:
        for task in WITH_THRESHOLD:
            chosen[task]["threshold"] = threshold
    if area_threshold is not None:
        chosen["segment"]["area_threshold"] = area_threshold
    chosen["segment"]["keep_scores"] = keep_scores
    chosen["anomaly"]["threshold"] = anomaly_threshold
    for key, value in (options or {}).items():
        name, _, option = key.partition(".")
        (task,) = check_tasks(name)
        chosen[task][option] = value
    try:
        return TaskHeads(**{task: HEADS[task](**chosen[task]) for task in TASKS}, scenes=scenes)
    except TypeError as error:
        raise ConfigError(f"an option of a task's head is wrong: {error}") from error


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a method, and those of heads, which begin with a task's name: `detect.min_score`."""
    heads = {key: value for key, value in options.items() if key.partition(".")[0] in TASKS}
    return {key: value for key, value in options.items() if key not in heads}, heads


def parse_rejection(text: str, *, of_images: bool = False) -> nn.Module:
    """A rule with its threshold, as `mcm:0.05`: the step that says "none of these".

    Args:
        text: a rule of `REJECTIONS` with its least score; ctw and atd have one of their own.
        of_images: whole images are known or not, by their class token; else pixels.

    Raises:
        ConfigError: another form, or an unknown rule.
    """
    rule, colon, number = text.partition(":")
    if rule not in REJECTIONS:
        raise unknown_name("rule of rejection", rule, REJECTIONS)
    try:
        threshold = float(number) if colon else None
    except ValueError:
        raise ConfigError(
            f"a rejection is RULE:THRESHOLD, such as maxlogit:9 or mcm:0.05, or atd alone, got '{text}'"
        ) from None
    made = Rejection(rule, threshold=threshold)  # type: ignore[arg-type]
    return ImageRejection(made) if of_images else made


def _check_no_tower(rules: Sequence[str], no_tower: str | Path | None) -> None:
    asked = [rule for rule in rules if rule.partition(":")[0] in NEEDS_NO]
    if asked and no_tower is None:
        raise ConfigError(NO_TOWER.format(rule=asked[0].partition(":")[0]))
    if no_tower is not None and not asked:
        raise ConfigError("a 'no' tower is asked by rejection: add --reject atd or --reject ctw")


def build_predictor(
    method: str,
    tasks: Sequence[Task],
    *,
    anomaly: str | None = None,
    anomaly_options: Mapping[str, Any] | None = None,
    good: str | Path | None = None,
    shots: int | None = None,
    anomaly_threshold: str | float | None = None,
    heads: Mapping[str, Any] | None = None,
    proposals: Any = None,
    crops: Any = None,
    refer: bool = False,
    reject: str | None = None,
    reject_images: str | None = None,
    no_tower: str | Path | None = None,
    scenes: int = 0,
    from_config: Callable[..., Any] | None = None,
    **options: Any,
) -> Any:
    """What answers the tasks.

    Args:
        method: for the score map; or, with no other task than anomaly, an anomaly method.
        tasks: what is asked.
        anomaly: an anomaly method ("winclip", "anovl", "anomalyclip", "patch-memory"), or "words": the score
            map's own comparison of a thing in order and out of order. By default "patch-memory" with good
            images, else "words".
        anomaly_options: of that method.
        good, shots: good images, see `AnomalyInferencer.learn`.
        anomaly_threshold: a file that `AnomalyThreshold.save` wrote, or a number.
        heads: see `build_heads`.
        proposals, crops, refer: the region route of detection, see `ovseg.region_route.RegionRoute`.
        reject, reject_images: see `parse_rejection`.
        no_tower: a checkpoint of CLIPN, for ctw and atd.
        scenes: how many scene names compete in an image, see `TaskHeads`.
        from_config: makes the inferencer of a config; then `method` is one.
        options: of `ovseg.Inferencer`.

    Raises:
        ConfigError: what was asked does not go together, or is unknown.
    """
    from ovseg.anomaly_build import ANOMALY_METHODS, MEMORY, build_anomaly_inferencer, given_threshold

    if method in ANOMALY_METHODS:
        if tuple(tasks) != ("anomaly",):
            raise ConfigError(
                f"'{method}' finds anomalies and nothing else: ask --task anomaly alone, or name a method "
                f"for the other tasks and --anomaly {method}"
            )
        anomaly, options = anomaly or method, options
    chosen = anomaly or (MEMORY if good is not None else "words")
    if chosen not in (*ANOMALY_METHODS, "words"):
        raise unknown_name("anomaly method", chosen, (*ANOMALY_METHODS, "words"))
    if "anomaly" not in tasks and (anomaly or good is not None or anomaly_threshold is not None):
        raise ConfigError("good images, anomaly methods and thresholds are for --task anomaly")
    if chosen == "words" and good is not None:
        raise ConfigError("words look at no good images: leave --good out, or ask --anomaly patch-memory")
    detector = None
    if "anomaly" in tasks and chosen != "words":
        common: dict[str, Any] = {
            key: options[key] for key in ("encoder", "weights", "device", "dtype") if key in options
        }
        if chosen == MEMORY:
            common = {key: value for key, value in common.items() if key != "weights"}
            if "guide" in options:
                common["guide"] = options["guide"]
        detector = build_anomaly_inferencer(
            chosen,
            good=good,
            shots=shots,
            threshold=anomaly_threshold,
            **common,
            **(anomaly_options or {}),
        )
        if tuple(tasks) == ("anomaly",):
            if options.get("merging") is not None:
                raise ConfigError(f"'{chosen}' merges no tokens: leave merging out, or ask --anomaly words")
            return detector
    rejections = [] if reject is None else [parse_rejection(reject)]
    rejections += [] if reject_images is None else [parse_rejection(reject_images, of_images=True)]
    if rejections:
        options["reject"] = rejections
    _check_no_tower([rule for rule in (reject, reject_images) if rule], no_tower)
    if no_tower is not None:
        options["no_tower"] = no_tower
    keeps = {
        key: options.pop(key) for key in ("threshold", "area_threshold", "keep_scores") if key in options
    }
    judge = None if detector is not None else given_threshold(anomaly_threshold)
    if from_config is None:
        from ovseg.inferencer import Inferencer

        made = build_heads(heads, anomaly_threshold=judge, scenes=scenes, **keeps)
        first: Any = Inferencer(method, heads=made, **options)
    else:
        first = from_config(method, **options, **keeps)
        if scenes:
            if not isinstance(getattr(first, "heads", None), TaskHeads):
                raise ConfigError(f"'{method}' has no background words: leave scenes out")
            first.heads.scenes = scenes
    if proposals is not None and options.get("outlines"):
        raise ConfigError("proposals have outlines of their own: leave outlines out")
    if refer and proposals is None:
        raise ConfigError("a phrase means one of the proposals: say where these are from, as --proposals sam")
    if proposals is not None:
        from ovseg.encoders.weights import BUNDLED
        from ovseg.region_route import RegionRoute, build_proposals

        made_of = build_proposals(proposals, bundled=first.describe()["encoder"] == BUNDLED)
        if isinstance(first, RegionRoute):  # what has learned to look at regions keeps its own look
            first.proposals, first.crops, first.refer = made_of, crops or first.crops, refer
        else:
            first = RegionRoute(first, made_of, crops=crops, refer=refer)
    return first if detector is None else Together(first, detector)
