"""ovseg in engines for many machines: all of them call `ovseg.batch.BatchPredictor`, made in each worker."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ovseg.answers import check_tasks
from ovseg.batch import BatchPredictor


def make_predict_batch(
    method: str,
    classes: Any,
    *,
    tasks: str = "segment",
    formats: str = "labels",
    templates: Any = "imagenet80",
    matte: tuple[int, int, int] = (255, 255, 255),
    max_pixels: int | None = None,
    style: Mapping[str, Any] | None = None,
    **options: Any,
) -> BatchPredictor:
    """The callable of a worker, with its model loaded; all arguments are plain values that travel.

    Args:
        method: see `ovseg.predictors.build_predictor`, which takes `options`.
        classes: words, a file, a shipped list, or what `Vocabulary.to_dict` gives.
        tasks, formats: as for `tools/infer.py`, "segment,count" and "labels,overlay".
        templates, matte, max_pixels: see `BatchPredictor`.
        style: of pictures, see `ovseg.outputs.writers.build_writers`.

    Raises:
        ConfigError, VocabularyError, CheckpointError: see `build_predictor`.
    """
    from ovseg.images import Limits
    from ovseg.outputs.writers import build_writers
    from ovseg.predictors import build_predictor
    from ovseg.text.vocabulary import Vocabulary

    named = check_tasks(tasks)
    vocabulary = Vocabulary.parse(classes)
    judged = options.get("good") is not None or options.get("anomaly_threshold") is not None
    writers = build_writers(
        formats.split(","), named, colors=vocabulary.colors, judged=judged, **(style or {})
    )
    keep_scores = any(writer.kind == "scores" for writer in writers)
    predictor = build_predictor(method, named, keep_scores=keep_scores, **options)
    return BatchPredictor(
        predictor,
        vocabulary,
        writers,
        tasks=named,
        templates=templates,
        limits=Limits(max_pixels=max_pixels) if max_pixels else None,
        matte=matte,
    )


def make_predict_fn(**config: Any) -> Callable[[], Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """For `pyspark.ml.functions.predict_batch_udf`: a column of images in, columns of text out.

    Spark's function returns numbers and text only, so bytes of pictures become base64 (`unbase64` in Spark).

    Args:
        config: of `make_predict_batch`.

    Returns:
        A function that loads the model and returns the predict function, as Spark wants it. That takes
        paths, or encoded images, and returns `record`, `error` and each kind of output.
    """

    def make() -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        ask = make_predict_batch(**config)
        kinds = [writer.kind for writer in ask.writers]

        def predict(images: np.ndarray) -> dict[str, np.ndarray]:
            found = ask({"bytes": images})
            for kind in kinds:
                found[kind] = np.array([b64encode(each).decode() for each in found[kind]], dtype=object)
            return found

        return predict

    return make
