"""WinCLIP's scoring against anomalib's, at the tolerance that the golden case states."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from anomaly_support import settings_of
from golden_cases import Case, cases

from ovseg.anomaly_structures import ABNORMAL, StateBank
from ovseg.methods.winclip import WindowFeatures, harmonic_map, window_cells

close = partial(torch.testing.assert_close, rtol=0, check_dtype=False, atol=1e-5)


def states(case: Case) -> StateBank:
    rows = F.normalize(case["text_features"], dim=-1)
    return StateBank(rows, rows)


def features(case: Case, prefix: str = "") -> WindowFeatures:
    settings = settings_of(case)
    patches = case[f"{prefix}patch_embeddings"]
    image = case["image_embeddings"] if not prefix else torch.zeros(len(patches), 1)
    windows = {side: case[f"{prefix}windows_s{side}"] for side in settings["windows"]}
    return WindowFeatures(image, patches, windows, tuple(settings["grid_hw"]))


@pytest.mark.parametrize("case", cases("winclip"))
def test_golden_windows(case: Case) -> None:
    settings = settings_of(case)
    hw, bank = tuple(settings["grid_hw"]), states(case)
    for side in settings["windows"]:
        cells = window_cells(hw, side)
        assert torch.equal(cells.T, case[f"masks_s{side}"].long())
        scores = bank.probabilities(case[f"windows_s{side}"], 1 / settings["temperature"])[..., ABNORMAL]
        close(scores, case[f"window_scores_s{side}"])
        close(harmonic_map(scores, cells, hw), case[f"harmonic_s{side}"])


@pytest.mark.parametrize("case", cases("winclip"))
def test_golden_scores(case: Case) -> None:
    settings = settings_of(case)
    bank, scale = states(case), 1 / settings["temperature"]
    found, good = features(case), features(case, "ref_")
    words = found.zero_shot(bank, scale)
    close(words.score, case["image_scores"])
    close(words.map, case["zero_shot_map"])
    close(words.resized(tuple(settings["map_hw"])).map, case["pixel_map"])
    close(found.distances(good), case["few_shot_map"])
    both = found.few_shot(bank, scale, good)
    close(both.map, case["combined_map"])
    close(both.score, case["combined_image_scores"])


def test_a_golden_case_is_there() -> None:
    assert cases("winclip")
