"""How far a figure may be chance: images drawn again, with replacement (Efron, 1979)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from ovseg.errors import ShapeError


def bootstrap_mean_iou(
    counts: Sequence[Int[np.ndarray, "_ 3 K"]], *, resamples: int = 10_000, seed: int = 0
) -> Float[np.ndarray, " resamples"]:
    """Mean IoU of resampled images.

    Equal seeds draw the same images, so that the difference of two methods' samples is a paired one.

    Args:
        counts: for each set of images, each image's hits, predicted and true pixels by class (`IoU.counts`).
            Images are drawn again within their set, and the sets' figures are averaged, as results are.
        resamples: how often.
        seed: of the draw.
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for images in counts:
        number, _, classes = images.shape
        drawn = generator.multinomial(number, np.full(number, 1 / number), size=resamples)
        sums = drawn.astype(np.float64) @ images.reshape(number, -1).astype(np.float64)
        hits, predicted, true = sums.reshape(resamples, 3, classes).swapaxes(0, 1)
        union = predicted + true - hits
        known = union > 0
        ratios = np.divide(hits, union, out=np.zeros_like(hits), where=known)
        total += ratios.sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return total / len(counts)


def paired_interval(
    ours: Sequence[Int[np.ndarray, "_ 3 K"]],
    theirs: Sequence[Int[np.ndarray, "_ 3 K"]],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
) -> tuple[float, float]:
    """Percentile interval of the difference of mean IoU between two methods on the same images.

    Raises:
        ShapeError: they are not of the same images.
    """
    if [each.shape for each in ours] != [each.shape for each in theirs] or not ours:
        raise ShapeError(
            f"paired differences need the same images: {[each.shape for each in ours]} and "
            f"{[each.shape for each in theirs]} (images, 3, classes)"
        )
    samples = bootstrap_mean_iou(ours, resamples=resamples) - bootstrap_mean_iou(theirs, resamples=resamples)
    tail = (1 - level) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)
