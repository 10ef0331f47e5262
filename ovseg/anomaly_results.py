"""What anomaly detection answers: how anomalous each pixel is, and from where on that counts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from ovseg.curves import Curve, ScoreTable
from ovseg.errors import ConfigError, ShapeError

FORMAT = "ovseg-anomaly-threshold-1"


@dataclass(frozen=True)
class AnomalyThreshold:
    """From which score on an image or a pixel is anomalous, and the range of scores seen with it.

    Attributes:
        image, pixel: scores of at least this much are anomalous.
        image_range, pixel_range: least and greatest score among the images that it was fitted on.
        how: where it comes from, for people.
    """

    image: float
    pixel: float
    image_range: tuple[float, float]
    pixel_range: tuple[float, float]
    how: str = ""

    def __post_init__(self) -> None:
        numbers = (self.image, self.pixel, *self.image_range, *self.pixel_range)
        if not all(map(math.isfinite, numbers)):
            raise ConfigError(f"thresholds and ranges must be finite, got {numbers}")
        if self.image_range[0] > self.image_range[1] or self.pixel_range[0] > self.pixel_range[1]:
            raise ConfigError(f"ranges are (least, greatest), got {self.image_range} and {self.pixel_range}")

    @classmethod
    def from_good(
        cls,
        results: Iterable[AnomalyMap],
        *,
        image_quantile: float = 0.95,
        pixel_quantile: float = 0.995,
    ) -> AnomalyThreshold:
        """Just above what good images reach.

        Args:
            results: of good images that the detector has not memorised (`MemoryBankHead.held_out`).
            image_quantile: share of the good images that stay normal.
            pixel_quantile: share of all their pixels that stay normal.

        Raises:
            ConfigError: no images, or a quantile outside [0, 1].
        """
        for name, value in (("image_quantile", image_quantile), ("pixel_quantile", pixel_quantile)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is a share between 0 and 1, got {value}")
        scores, _, table = _collected((result, False, None) for result in results)
        values, _ = table.rows()
        return cls(
            image=_just_above(float(np.quantile(scores, image_quantile, method="higher"))),
            pixel=_just_above(table.quantile(pixel_quantile)),
            image_range=(float(scores.min()), float(scores.max())),
            pixel_range=(float(values[0]), float(values[-1])),
            how=f"quantile {image_quantile:g} of {len(scores)} good images, {pixel_quantile:g} of pixels",
        )

    @classmethod
    def at_best_f1(
        cls, labelled: Iterable[tuple[AnomalyMap, bool, Shaped[np.ndarray, "H W"] | None]]
    ) -> AnomalyThreshold:
        """Where F1 is best, for images and for pixels alone; without masks both have the image's.

        Args:
            labelled: `(result, whether damaged, mask of the damage)` of each image. A good image needs no
                mask; without a mask a damaged one counts for the image threshold only.

        Raises:
            ConfigError: no image is damaged.
            ShapeError: a mask is not of its map's size.
        """
        scores, damaged, table = _collected(labelled)
        if not damaged.any():
            raise ConfigError("the best F1 needs a damaged image; with good ones only, take a quantile")
        values, (normal, wrong) = table.rows()
        image = Curve.of(scores, damaged).best_f1()[1]
        pixel = Curve.from_rows(values, wrong, normal).best_f1()[1]
        image_range = float(scores.min()), float(scores.max())
        known = math.isfinite(pixel)
        return cls(
            image=image,
            pixel=pixel if known else image,
            image_range=image_range,
            pixel_range=(float(values[0]), float(values[-1])) if known else image_range,
            how=f"best F1 of {len(scores)} images, {damaged.sum()} damaged",
        )

    def save(self, path: str | Path) -> None:
        """Writes JSON."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> AnomalyThreshold:
        """Reads what `save` wrote.

        Raises:
            ConfigError: no such file, or another kind of file.
        """
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT or set(content) != {field.name for field in fields(cls)}:
                raise ValueError("its fields are others")
            (low, high), (pixel_low, pixel_high) = content["image_range"], content["pixel_range"]
            return cls(
                image=float(content["image"]),
                pixel=float(content["pixel"]),
                image_range=(float(low), float(high)),
                pixel_range=(float(pixel_low), float(pixel_high)),
                how=str(content["how"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is no anomaly threshold as ovseg saves it: {error}") from error


@dataclass(frozen=True)
class AnomalyMap:
    """How anomalous one image is, and where.

    Attributes:
        map: `(H, W)`, higher is more anomalous, at the image's own size.
        score: of the whole image, higher is more anomalous.
        threshold: what to call anomalous; None where nobody knows, and then there is no label and no mask.
    """

    map: Float[np.ndarray, "H W"]
    score: float
    threshold: AnomalyThreshold | None = None

    @property
    def image_hw(self) -> tuple[int, int]:
        """Pixels `(H, W)`."""
        return self.map.shape[0], self.map.shape[1]

    @property
    def label(self) -> bool | None:
        """Whether the image is anomalous."""
        return None if self.threshold is None else self.score >= self.threshold.image

    @property
    def mask(self) -> Bool[np.ndarray, "H W"] | None:
        """Where it is anomalous."""
        return None if self.threshold is None else self.map >= np.float32(self.threshold.pixel)

    @property
    def normalised_score(self) -> float | None:
        """In [0, 1], 0.5 at the threshold (see `normalised`)."""
        t = self.threshold
        return None if t is None else float(normalised(np.array(self.score), t.image, t.image_range))

    @property
    def normalised_map(self) -> Float[np.ndarray, "H W"] | None:
        """In [0, 1], 0.5 at the threshold (see `normalised`)."""
        t = self.threshold
        return None if t is None else normalised(self.map, t.pixel, t.pixel_range)

    def judged(self, threshold: AnomalyThreshold | None) -> AnomalyMap:
        """The same under another threshold."""
        return replace(self, threshold=threshold)

    def summary(self) -> dict[str, Any]:
        """What a report says of it, as JSON can."""
        mask = self.mask
        return {
            "score": self.score,
            "normalised_score": self.normalised_score,
            "anomalous": self.label,
            "anomalous_share": None if mask is None else float(mask.mean()),
        }


def normalised(
    values: Float[np.ndarray, "..."], threshold: float, range_: tuple[float, float]
) -> Float[np.ndarray, "..."]:
    """Scores as anomalib shows them: `clip((x - threshold) / (max - min) + 0.5, 0, 1)`.

    The decision is always at 0.5. Where the range is a single value, all below it is 0 and all above 1.

    Source: open-edge-platform/anomalib at b723368617, its post-processor.
    """
    width = max(range_[1] - range_[0], float(np.finfo(np.float32).tiny))
    return np.asarray(np.clip((values.astype(np.float64) - threshold) / width + 0.5, 0, 1), np.float32)


def _collected(
    labelled: Iterable[tuple[AnomalyMap, bool, np.ndarray | None]],
) -> tuple[np.ndarray, np.ndarray, ScoreTable]:
    """Image scores, image labels, and a table of normal and damaged pixels."""
    scores, damaged, table = [], [], ScoreTable(2)
    for result, wrong, mask in labelled:
        scores.append(result.score)
        damaged.append(bool(wrong))
        if mask is None and wrong:
            continue
        where = np.zeros(result.image_hw, bool) if mask is None else mask != 0
        if where.shape != result.image_hw:
            raise ShapeError(f"the anomaly map is {result.image_hw}, its mask {where.shape} (HxW)")
        table.add(result.map, ~where, where)
    if not scores:
        raise ConfigError("a threshold needs at least one image, got none")
    return np.array(scores, float), np.array(damaged), table


def _just_above(value: float) -> float:
    """The next float32, so that what it was taken from stays normal."""
    return float(np.nextafter(np.float32(value), np.float32(np.inf)))
