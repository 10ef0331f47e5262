"""Every config that reads files, pointed to a wrong folder: the message names it and shows the layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mm.conftest import ALL_CONFIGS, REPO
from ovseg.errors import ConfigError
from ovseg.layouts import LAYOUTS
from ovseg.mm.runner import check_data
from ovseg.mm.train import datasets_of
from ovseg.prepare.benchmarks import BENCHMARKS

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
BASES = sorted((REPO / "configs" / "_base_" / "datasets").glob("*.py"))


def roots_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The data sets of a config that have files, and where it says so."""
    config = Config.fromfile(path)
    for loader in LOADERS:
        if "dataset" in config.get(loader, {}):
            for where, dataset in datasets_of(config[loader].dataset, f"{loader}.dataset"):
                if "data_root" in dataset:
                    yield where, dict(dataset)


FILES = [path for path in BASES if list(roots_of(path))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("state", ["missing", "empty", "other"])
def test_a_wrong_root_is_explained(path: Path, state: str, tmp_path: Path) -> None:
    for where, dataset in roots_of(path):
        layout = LAYOUTS[dataset["type"].rpartition(".")[2]]
        assert dataset["data_root"] == layout.root
        root = tmp_path / "wrong"
        if state == "empty":
            root.mkdir(exist_ok=True)
        if state == "other":
            (root / "holidays").mkdir(parents=True, exist_ok=True)
            prefixes = dataset.get("data_prefix", {})
            for folder in filter(None, prefixes.values()):
                (root / folder).mkdir(parents=True, exist_ok=True)  # there, and empty
            if not prefixes and not dataset.get("ann_file"):
                continue  # the data set itself tells, see test_anomaly and test_counting
        with pytest.raises(ConfigError) as caught:
            check_data(dataset | {"data_root": str(root)}, where)
        said = str(caught.value)
        assert f"no {root}" in said
        assert f"--cfg-options {where}.data_root=FOLDER" in said
        assert f"expected:\n{root}/" in said
        assert all(f"\n  {line}" in said for line in layout.lines())


def test_all_layouts_can_be_checked() -> None:
    """Configs of all methods read data sets that have a layout, and those that tests read have a check."""
    kinds = {dataset["type"] for path in FILES for _, dataset in roots_of(path)}
    others = [path for path in ALL_CONFIGS if "data_root" in path.read_text()]
    kinds |= {dataset["type"] for path in others for _, dataset in roots_of(path)}
    names = {kind.rpartition(".")[2] for kind in kinds}
    assert names <= LAYOUTS.keys()
    trees = [LAYOUTS[each.layout_of] for each in BENCHMARKS.values()]
    assert all(LAYOUTS[name] in trees for name in names)
