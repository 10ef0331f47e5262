"""Anomaly figures against what the AnomalyCLIP authors' metric file computes."""

from __future__ import annotations

import json

import pytest
from golden_cases import Case, cases

from ovseg.metrics.anomaly import AnomalyMetrics


@pytest.mark.parametrize("case", cases("anomaly_metrics"))
def test_golden_anomaly_metrics(case: Case) -> None:
    settings = json.loads((case.folder / "settings.json").read_text())
    arrays = case.arrays
    metrics = AnomalyMetrics(fpr_limit=settings["fpr_limit"])
    columns = (arrays[name] for name in ("image_scores", "labels", "anomaly_maps", "masks"))
    for score, label, heat, mask in zip(*columns, strict=True):
        metrics.update(float(score), bool(label), heat, mask)
    report = metrics.report()
    ours = dict(
        image_auroc=report.image_auroc,
        image_ap=report.image_ap,
        pixel_auroc=report.pixel_auroc,
        pixel_aupro=metrics.aupro_stepped(settings["thresholds"]),
    )
    assert ours == pytest.approx({name: float(arrays[name]) for name in ours}, abs=1e-6)
    # the exact figure is another one
    assert 1e-4 < abs(report.aupro - ours["pixel_aupro"]) < 0.05


def test_golden_cases_are_there() -> None:
    assert cases("anomaly_metrics"), "no golden case of the anomaly metrics"
