"""Average precision by COCO's rules or by LVIS's, of all classes and of parts of them."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from jaxtyping import Float
from mmdet.datasets.api_wrappers import COCOeval
from mmdet.evaluation.metrics import CocoMetric
from mmengine.logging import print_log

from ovseg.errors import ConfigError
from ovseg.mm.build import build_vocabulary
from ovseg.mm.coco_data import CocoTruth
from ovseg.mm.registry import METRICS
from ovseg.text.class_files import fold

#: What is measured, as mmdet calls it -> as figures are called here.
KINDS = {"bbox": "box", "segm": "mask"}
SIZES = ("all", "small", "medium", "large")  # in pycocotools' order


@METRICS.register_module()
class OvCocoMetric(CocoMetric):
    """pycocotools' figures, in percent: `box_AP`, `box_AP50`, `mask_AP50`, `box_AP50_novel` ...

    Unlike mmdet's `CocoMetric` it measures the images that were looked at, no others (so a limit is no miss),
    takes the classes in the data set's order, and says 0 where nothing was found at all.

    Source of the federated rules: Gupta et al., LVIS, arXiv 1908.03195; github.com/lvis-dataset/lvis-api at
    04e89fde, lvis/eval.py and lvis/results.py. A class counts in the images that are annotated for it (it is
    there, or `neg_category_ids` has it); in `not_exhaustive_category_ids`, a detection without a match is no
    mistake; of an image, the surest 300 detections count.

    Args:
        splits: parts of the classes by name, each as `build_vocabulary` takes it:
            `dict(novel="ov_coco_novel")`.
        federated: LVIS's rules.
        sizes: also `box_AP_small`, `_medium` and `_large`, by COCO's limits of 32 and 96 squared pixels.
        max_detections: of an image and class the surest, with LVIS's rules of an image; None is 100, and 300.
        ann_file: the truth; None takes the data set's file, else what the data samples hold.
        output_dir: folder for what was found, as `results.bbox.json` and `results.segm.json`, COCO's lists of
            results.
        kwargs: see mmdet's `CocoMetric`; of its options, `metric`, `iou_thrs`, `classwise`, `format_only` and
            `outfile_prefix` count.
    """

    default_prefix = None
    _coco_api: Any

    def __init__(
        self,
        *,
        splits: Mapping[str, Any] | None = None,
        federated: bool = False,
        sizes: bool = False,
        max_detections: int | None = None,
        ann_file: str | None = None,
        output_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        if output_dir is not None:
            kwargs["outfile_prefix"] = str(Path(output_dir) / "results")
        super().__init__(**kwargs)
        unknown = set(self.metrics) - set(KINDS)
        if unknown:
            raise ConfigError(f"OvCocoMetric measures {', '.join(KINDS)}, not {', '.join(sorted(unknown))}")
        self.splits = {name: build_vocabulary(each).names for name, each in (splits or {}).items()}
        self.federated = federated
        self.sizes = SIZES if sizes else SIZES[:1]
        self.max_detections = max_detections or (300 if federated else 100)
        self.ann_file = ann_file

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps what was found, and the truth of the samples where there is no file of it."""
        path = self.ann_file or self.dataset_meta.get("ann_file")
        if self._coco_api is None and path:
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco_api = CocoTruth(path)
        super().process(data_batch, data_samples)

    def compute_metrics(self, results: list[tuple[dict, dict]]) -> dict[str, float]:
        """What mmengine calls at the end.

        Raises:
            ConfigError: a split has a class that the data set lacks, or LVIS's rules were asked of a file
                without LVIS's marks.
        """
        truths, found = zip(*results, strict=True)
        names = tuple(self.dataset_meta["classes"])
        parts = {name: _places(names, classes, name) for name, classes in self.splits.items()}
        with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            prefix = self.outfile_prefix or str(Path(folder) / "results")
            api = self._coco_api or CocoTruth(self.gt_to_coco_json(truths, prefix))
            self.cat_ids = api.get_cat_ids(names)
            if self.outfile_prefix:
                Path(prefix).parent.mkdir(parents=True, exist_ok=True)
                self.results2json(found, prefix)
            if self.format_only:
                return {}
            figures: dict[str, float] = {}
            for kind in self.metrics:
                precision = self._precision(api, found, kind)
                figures |= self._figures(KINDS[kind], precision, parts)
                if self.classwise:
                    self._log_classes(KINDS[kind], names, precision)
        return figures

    def _precision(self, api: CocoTruth, found: Sequence[dict], kind: str) -> Float[np.ndarray, "T R K A"]:
        """Precision by IoU, recall, class and size of object; -1 where a class has no truth."""
        image_ids = [each["img_id"] for each in found]
        records = [record for each in found for record in self._records(each, kind)]
        judged = dict.fromkeys(self.cat_ids, image_ids)
        lenient: set[tuple[Any, int]] = set()
        if self.federated:
            annotated, lenient = federation(api, image_ids)
            records = [e for e in records if (e["image_id"], e["category_id"]) in annotated]
            judged = defaultdict(list)
            for image_id, number in sorted(annotated):
                judged[number].append(image_id)
        detected = api.loadRes(records) if records else _nothing(api)
        classes = []
        for number in self.cat_ids:  # one at a time: pycocotools holds a list for every image and class
            test = COCOeval(api, detected, kind)
            test.params.catIds, test.params.imgIds = [number], judged[number]
            test.params.iouThrs = np.asarray(self.iou_thrs, float).reshape(-1)
            test.params.maxDets = [self.max_detections]
            test.params.areaRng, test.params.areaRngLbl = (
                each[: len(self.sizes)] for each in (test.params.areaRng, list(SIZES))
            )
            test.evaluate()
            for each in filter(None, test.evalImgs):
                if (each["image_id"], number) in lenient:
                    each["dtIgnore"] |= each["dtMatches"] == 0
            test.accumulate()
            classes.append(test.eval["precision"][:, :, 0, :, 0])
        return np.stack(classes, axis=2)

    def _records(self, found: dict, kind: str) -> list[dict[str, Any]]:
        """One image's detections as COCO keeps them."""
        order = np.argsort(-found["scores"], kind="stable")
        if self.federated:
            order = order[: self.max_detections]
        if kind == "segm" and "masks" not in found:
            raise ConfigError("masks were to be measured, and the model gave none: ask it for masks")
        return [
            {
                "image_id": found["img_id"],
                "category_id": self.cat_ids[found["labels"][index]],
                "score": float(found["scores"][index]),
                # with a box, pycocotools would take its area for the mask's
                **(
                    {"segmentation": found["masks"][index]}
                    if kind == "segm"
                    else {"bbox": self.xyxy2xywh(found["bboxes"][index])}
                ),
            }
            for index in order
        ]

    def _figures(
        self, kind: str, precision: Float[np.ndarray, "T R K A"], parts: Mapping[str, Sequence[int]]
    ) -> dict[str, float]:
        thresholds = np.asarray(self.iou_thrs, float).reshape(-1)
        wanted = {"AP": slice(0, len(thresholds))}
        for name, iou in (("AP50", 0.5), ("AP75", 0.75)):
            for place in np.flatnonzero(np.isclose(thresholds, iou)).tolist():
                wanted[name] = slice(place, place + 1)
        found = {f"{kind}_{name}": _mean(precision[at, :, :, 0]) for name, at in wanted.items()}
        for part, places in parts.items():
            for name, at in wanted.items():
                found[f"{kind}_{name}_{part}"] = _mean(precision[at][:, :, places, 0])
        for size, name in enumerate(self.sizes[1:], start=1):
            found[f"{kind}_AP_{name}"] = _mean(precision[..., size])
        return found

    @staticmethod
    def _log_classes(kind: str, names: Sequence[str], precision: Float[np.ndarray, "T R K A"]) -> None:
        rows = [f"{name}: {_mean(precision[:, :, k, 0]):.1f}" for k, name in enumerate(names)]
        print_log(f"{kind} AP by class\n" + "\n".join(rows), logger="current")


def federation(api: CocoTruth, image_ids: Sequence[Any]) -> tuple[set[tuple[Any, int]], set[tuple[Any, int]]]:
    """Which images are annotated for which classes, and where not every object of a class is.

    Returns:
        Pairs `(image, class)` of both kinds.

    Raises:
        ConfigError: the file does not say.
    """
    annotated, lenient = set(), set()
    for image in api.load_imgs(list(image_ids)):
        try:
            absent, partly = image["neg_category_ids"], image["not_exhaustive_category_ids"]
        except KeyError as error:
            raise ConfigError(
                f"federated=True needs a file in LVIS's form, whose images have {error}: give one, or take "
                f"federated=False"
            ) from None
        annotated |= {(image["id"], each) for each in absent}
        annotated |= {(image["id"], each["category_id"]) for each in api.imgToAnns[image["id"]]}
        lenient |= {(image["id"], each) for each in partly}
    return annotated, lenient


def _nothing(api: CocoTruth) -> CocoTruth:
    """Results without any."""
    empty = CocoTruth()
    empty.dataset = {key: api.dataset[key] for key in ("images", "categories")} | {"annotations": []}
    empty.createIndex()
    return empty


def _places(names: Sequence[str], part: Sequence[str], what: str) -> list[int]:
    place = {fold(name): index for index, name in enumerate(names)}
    missing = [name for name in part if fold(name) not in place]
    if missing:
        raise ConfigError(f"split '{what}' has classes that the data set lacks: {', '.join(missing[:5])}")
    return [place[fold(name)] for name in part]


def _mean(precision: Float[np.ndarray, "..."]) -> float:
    """In percent; NaN where no class has truth."""
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else float("nan")
