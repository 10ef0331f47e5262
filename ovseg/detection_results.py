"""What detection answers, ready for numpy, COCO, YOLO and supervision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Int64

from ovseg.errors import MissingDependencyError, ShapeError
from ovseg.rle import Rle, decode_mask, mask_area


@dataclass(frozen=True)
class Detections:
    """The objects of one image; there may be none.

    Attributes:
        boxes_xyxy: `(N, 4)` pixels; the far edges are exclusive, so widths are plain differences.
        labels: `(N,)` class indices.
        scores: `(N,)` in [0, 1].
        names: the K class names; `labels == i` is `names[i]`.
        image_hw: pixels `(H, W)` of the image.
        masks: one for each object, at the image's size, or None.
        attributes: `(N, A)` probability of each attribute, where they were asked for.
        attribute_names: the A attributes.

    Raises:
        ShapeError: the parts are not of as many objects.
    """

    boxes_xyxy: Float32[np.ndarray, "N 4"]
    labels: Int64[np.ndarray, " N"]
    scores: Float32[np.ndarray, " N"]
    names: tuple[str, ...]
    image_hw: tuple[int, int]
    masks: tuple[Rle, ...] | None = None
    attributes: Float32[np.ndarray, "N A"] | None = None
    attribute_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what in ("labels", "scores", "masks", "attributes"):
            given = getattr(self, what)
            if given is not None and len(given) != len(self.boxes_xyxy):
                raise ShapeError(f"{len(self.boxes_xyxy)} boxes came with {len(given)} {what}: one for each")

    def __len__(self) -> int:
        return len(self.boxes_xyxy)

    @classmethod
    def empty(cls, names: tuple[str, ...], image_hw: tuple[int, int], *, masks: bool = False) -> Detections:
        """Nothing found."""
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.int64),
            np.zeros(0, np.float32),
            names,
            image_hw,
            () if masks else None,
        )

    def select(self, chosen: Bool[np.ndarray, " N"] | Int[np.ndarray, " n"]) -> Detections:
        """Some of them, in the order asked for."""
        places = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy[places],
            labels=self.labels[places],
            scores=self.scores[places],
            masks=None if self.masks is None else tuple(self.masks[place] for place in places),
            attributes=None if self.attributes is None else self.attributes[places],
        )

    def counts(self) -> dict[str, int]:
        """Objects by class found, most first."""
        numbers = np.bincount(self.labels, minlength=len(self.names))
        return {self.names[k]: int(numbers[k]) for k in np.argsort(-numbers, kind="stable") if numbers[k]}

    def mask(self, index: int) -> Bool[np.ndarray, "H W"]:
        """One object's mask; its box, where there are no masks."""
        if self.masks is not None:
            return decode_mask(self.masks[index])
        canvas = np.zeros(self.image_hw, bool)
        left, top, right, bottom = np.round(self.boxes_xyxy[index]).astype(int)
        canvas[top:bottom, left:right] = True
        return canvas

    def to_coco(self, image_id: int | str, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO's list of results, JSON-ready.

        Args:
            image_id: as the data set knows the image.
            category_ids: the data set's number of each class, by default its index plus 1.
        """
        if category_ids is not None and len(category_ids) != len(self.names):
            raise ShapeError(f"{len(self.names)} classes came with {len(category_ids)} category_ids")
        found = []
        for index, (left, top, right, bottom) in enumerate(self.boxes_xyxy.tolist()):
            label = int(self.labels[index])
            entry: dict[str, Any] = {
                "image_id": image_id,
                "category_id": label + 1 if category_ids is None else int(category_ids[label]),
                "bbox": [left, top, right - left, bottom - top],
                "score": float(self.scores[index]),
            }
            if self.masks is not None:
                entry["segmentation"] = self.masks[index]
                entry["area"] = mask_area(self.masks[index])
            if self.attributes is not None:
                probabilities = map(float, self.attributes[index])
                entry["attributes"] = dict(zip(self.attribute_names, probabilities, strict=True))
            found.append(entry)
        return found

    def to_yolo(self, *, scores: bool = False) -> str:
        """YOLO's text: a line `class x y width height` for each, middle and size as shares of the image.

        Args:
            scores: add the score to each line.
        """
        height, width = self.image_hw
        lines = []
        for label, box, score in zip(self.labels, self.boxes_xyxy, self.scores, strict=True):
            left, top, right, bottom = (float(each) for each in box)
            shares = [
                (left + right) / 2 / width,
                (top + bottom) / 2 / height,
                (right - left) / width,
                (bottom - top) / height,
            ]
            fields = [f"{each:.6f}" for each in (*shares, *((float(score),) if scores else ()))]
            lines.append(" ".join([str(int(label)), *fields]))
        return "".join(line + "\n" for line in lines)

    def to_supervision(self) -> Any:
        """A `supervision.Detections`, with the class names in its data.

        Raises:
            MissingDependencyError: the package is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MissingDependencyError(
                "to_supervision() needs the package supervision: pip install supervision"
            ) from error
        masks = None
        if self.masks:
            masks = np.stack([decode_mask(each) for each in self.masks])
        return supervision.Detections(
            xyxy=self.boxes_xyxy.copy(),
            mask=masks,
            confidence=self.scores.copy(),
            class_id=self.labels.copy(),
            data={"class_name": np.array([self.names[label] for label in self.labels], dtype=str)},
        )
