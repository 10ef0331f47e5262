from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ovseg.benchmark import anomalies, figures, objects, page
from ovseg.benchmark.records import measured
from ovseg.benchmark.run import settings_of
from ovseg.detection_results import Detections
from ovseg.errors import ConfigError
from ovseg.metrics.detection import AveragePrecision
from ovseg.rle import encode_mask

NAMES, HW = ("a", "b", "c"), (40, 60)


def boxes(generator: np.random.Generator, number: int) -> Detections:
    low = generator.integers(0, 20, size=(number, 2))
    corners = np.concatenate([low, low + generator.integers(5, 20, size=(number, 2))], axis=1)
    masks = []
    for left, top, right, bottom in corners:
        mask = np.zeros(HW, bool)
        mask[top:bottom, left : right - 2] = True
        masks.append(encode_mask(mask))
    return Detections(
        corners.astype(np.float32),
        generator.integers(0, 3, size=number),
        generator.random(number).astype(np.float32),
        NAMES,
        HW,
        tuple(masks),
    )


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_average_precision_of_records_is_that_of_the_metric(kind: str) -> None:
    generator = np.random.default_rng(3)
    metric = AveragePrecision(3, kind=kind)
    records = []
    for _ in range(8):
        found, truth = boxes(generator, 12), boxes(generator, 4)
        metric.update(found, truth)
        records.append(objects.matched(found, truth))
    expected = metric.report().at(0.5)
    assert 0.02 < expected < 0.9
    assert figures.ap50(kind)(records) == pytest.approx(expected)


def test_a_gain_is_clear_only_where_scenes_agree() -> None:
    generator = np.random.default_rng(0)
    theirs = [[{"x": float(value)} for value in generator.normal(0, 1, 40)] for _ in range(3)]
    better = [[{"x": each["x"] + 0.3} for each in seed] for seed in theirs]
    clear = figures.gain(figures.mean_of("x"), better, theirs, resamples=200)
    assert clear.value == pytest.approx(0.3)
    assert (clear.low, clear.high) == pytest.approx((0.3, 0.3))
    assert clear.clear
    other = [[{"x": float(value)} for value in generator.normal(0, 1, 40)] for _ in range(3)]
    assert not figures.gain(figures.mean_of("x"), other, theirs, resamples=200).clear
    assert not figures.gain(figures.mean_of("x"), theirs, better, resamples=200).clear


def test_errors_of_counts() -> None:
    scenes = [{"found": {"dog": 3, "cat": 2}, "truth": {"dog": 5}}, {"found": {}, "truth": {"cat": 4}}]
    assert figures.negative_mae(scenes) == -3
    assert figures.rmse(scenes) == pytest.approx(10**0.5)
    assert figures.never_there(scenes) == 1


def test_image_auroc_is_a_mean_over_kinds() -> None:
    scenes = [
        {"kind": kind, "score": score, "damaged": damaged}
        for kind, pairs in {
            "pizza": [(0.1, False), (0.9, True)],
            "clock": [(9.0, False), (8.0, True)],  # other kinds do not compare
            "apple": [(1.0, False), (2.0, False)],  # no answer
        }.items()
        for score, damaged in pairs
    ]
    assert figures.image_auroc(scenes) == 0.5
    assert np.isnan(figures.image_auroc(scenes[4:]))


def test_what_was_measured_is_kept_until_its_settings_change(tmp_path: Path) -> None:
    calls = []

    def measure(seed: int) -> dict:
        calls.append(seed)
        return {"row": [{"x": seed}]}

    first = measured("part", [0, 1], {"n": (1, 2)}, measure, tmp_path)
    assert first == {"row": [[{"x": 0}], [{"x": 1}]]}
    assert measured("part", [1, 0], {"n": (1, 2)}, measure, tmp_path) == {"row": [[{"x": 1}], [{"x": 0}]]}
    assert calls == [0, 1]
    measured("part", [0], {"n": (1, 3)}, measure, tmp_path)
    assert calls == [0, 1, 0]


def test_the_page_says_where_a_head_is_no_better_than_a_trivial_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(figures, "RESAMPLES", 20)
    generator = np.random.default_rng(1)
    found: dict = {"boxes": {}, "counts": {}, "anomalies": {}}
    for row in (objects.WHOLE, objects.PLAIN, objects.INSTANCES, objects.BOXES, objects.DRAWN):
        found["boxes"][row] = []
    found["boxes"]["rejection"] = []
    for _ in range(2):
        truths = [boxes(generator, 4) for _ in range(6)]
        right = [objects.matched(each, each) for each in truths]
        wrong = [objects.matched(boxes(generator, 4), each) for each in truths]
        for row in found["boxes"]:
            found["boxes"][row].append(right if row in (objects.BOXES, objects.DRAWN) else wrong)
        found["boxes"]["rejection"][-1] = [
            {"chance": 0.5} | dict.fromkeys(objects.RULES, float(value)) for value in generator.random(6)
        ]
    for row in (objects.COUNT, objects.COUNT_SHOWN, objects.MEAN):
        number = 6 if row == objects.MEAN else 5
        found["counts"][row] = [[{"found": {"dog": number}, "truth": {"dog": 5}}] * 3] * 2
    for row in (anomalies.ODD_COLOUR, anomalies.GOOD_COLOUR, anomalies.WORDS, *anomalies.METHODS):
        pixels = dict.fromkeys(("pixel_auroc", "aupro", "aupro_200"), 0.5)
        scenes = [
            {"kind": "clock", "score": float(damaged), "damaged": damaged} for damaged in (True, False) * 4
        ]
        found["anomalies"][row] = [[scenes[0] | pixels, *scenes[1:]]] * 2
    lines = page.section(found, settings_of(seeds=[0, 1], num_scenes=6), ["--heads"])
    first = lines.index("")  # below the verdicts
    table = {line.split(" | ")[0].strip("| "): line for line in lines[:first] if line.startswith("|")}
    assert "yes" in table["detect"]
    assert "100.0" in table["detect"]
    assert "**no**" in table["instances"]
    assert "0.00" in table["count"]
    assert "yes" in table["count"]
    assert "yes" in table["anomaly: WinCLIP, words"]
    assert "**no**" in table["anomaly: patch memory, good images"]
    assert "python tools/test.py --heads" in lines


def test_settings_that_measure_nothing() -> None:
    with pytest.raises(ConfigError, match="two scenes"):
        settings_of(num_scenes=1)
    with pytest.raises(ConfigError, match="give a seed"):
        settings_of(seeds=[])
