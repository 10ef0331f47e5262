"""The benchmark's parts on a scene or two, with the bundled models."""

from __future__ import annotations

import numpy as np
import pytest

from ovseg.benchmark import anomalies, figures, objects


def test_boxes_and_rejection() -> None:
    rows = objects.measure_boxes(7, split="val", num_scenes=1, regions=False)
    assert set(rows) == {
        objects.WHOLE, objects.PLAIN, objects.INSTANCES, objects.BOXES, objects.DRAWN, "rejection",
    }  # fmt: skip
    assert rows[objects.WHOLE][0]["number"] == 1
    assert figures.ap50("box")(rows[objects.BOXES]) > figures.ap50("box")(rows[objects.WHOLE])
    assert all(0 <= rows["rejection"][0][rule] <= 1 for rule in objects.RULES)


def test_counts() -> None:
    rows = objects.measure_counts(7, num_scenes=1, mean_count=5.0)
    assert set(rows[objects.MEAN][0]["found"].values()) == {5.0}
    assert figures.never_there(rows[objects.COUNT_SHOWN]) == 0
    assert figures.negative_mae(rows[objects.COUNT]) > -20


def test_plain_colours_know_a_spot_of_another_colour() -> None:
    generator = np.random.default_rng(0)
    good = [generator.normal(100, 5, (30, 40, 3)).clip(0, 255).astype(np.uint8) for _ in range(3)]
    damaged = good[0].copy()
    damaged[10:14, 20:24] = 200, 30, 30
    for shots in ((), good):
        answer = anomalies.colour_answer(shots)
        score, pixels = answer(damaged)
        assert score > answer(good[1])[0]
        assert pixels[10:14, 20:24].min() > np.delete(pixels, np.s_[10:14], axis=0).max()


@pytest.mark.parametrize("row", list(anomalies.METHODS))
def test_every_row_is_a_known_method(row: str) -> None:
    method, sees = anomalies.METHODS[row]
    assert method in ("winclip", "anovl", "patch-memory")
    assert (row in anomalies.FEW_SHOT) == sees
