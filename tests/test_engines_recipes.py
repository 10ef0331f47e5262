"""The recipes of docs/scaling.md run as they stand, and give what a plain call gives.

In processes of their own: engines talk over sockets and warn, both of which this suite forbids.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from run_helpers import save

from ovseg.engines import make_predict_batch, make_predict_fn

PAGE = Path(__file__).parents[1] / "docs/scaling.md"
CONFIG: dict[str, Any] = dict(
    method="maskclip", classes="cat, dog, grass", encoder="bundled", formats="labels"
)
PACKAGES = {"Spark": "pyspark", "Daft": "daft"}
SPARK = (
    "--master local[2] --driver-memory 512m --conf spark.ui.enabled=false "
    "--driver-java-options '-XX:TieredStopAtLevel=1 -XX:+UseSerialGC' pyspark-shell"
)
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYSPARK_SUBMIT_ARGS": SPARK,
    "PYSPARK_PYTHON": sys.executable,
    "SPARK_LOCAL_IP": "127.0.0.1",
    "DAFT_RUNNER": "native",
    "DO_NOT_TRACK": "true",
}


@pytest.fixture
def images(tmp_path: Path) -> dict[str, bytes]:
    """Three good ones and two that no reader takes, in the folder that the recipes name."""
    for number, name in enumerate(("a.png", "b 猫.jpg", "c.webp")):
        save(tmp_path / "photos" / name, number, (40 + 8 * number, 64))
    (tmp_path / "photos/broken.png").write_bytes(b"no image")
    (tmp_path / "photos/empty.jpg").write_bytes(b"")
    return {path.name: path.read_bytes() for path in sorted((tmp_path / "photos").iterdir())}


def plainly(images: dict[str, bytes]) -> dict[str, tuple[str, bytes, Any]]:
    found = make_predict_batch(**CONFIG)({"bytes": list(images.values())})
    rows = zip(images, found["error"], found["labels"], found["record"], strict=True)
    return {name: (error, labels, numbers(record)) for name, error, labels, record in rows}


def numbers(record: str) -> dict[str, Any]:
    """A record without what differs each time."""
    return {name: value for name, value in json.loads(record).items() if name not in ("seconds", "traceback")}


def java_version() -> int:
    """0 where there is none."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(f"{home}/bin/java" if home else "java")
    said = subprocess.run([java, "-version"], capture_output=True, text=True).stderr if java else ""
    match = re.search(r'version "(\d+)', said)
    return int(match[1]) if match else 0


@pytest.mark.timeout(280)
@pytest.mark.parametrize("engine", ["Spark", "Daft"])
def test_a_recipe_gives_what_a_plain_call_gives(
    engine: str, images: dict[str, bytes], tmp_path: Path
) -> None:
    pytest.importorskip(PACKAGES[engine])
    if engine == "Spark" and java_version() < 17:
        pytest.skip("Spark needs Java 17 or later")
    from pyarrow import parquet

    match = re.search(rf"\*\*{engine}\*\*.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert match
    command = [sys.executable, "-c", match[1]]
    ended = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    rows = parquet.read_table(tmp_path / "results").to_pylist()
    assert len({row["path"] for row in rows}) == len(rows)
    found = {
        unquote(row["path"]).rpartition("/")[2]: (row["error"], row["labels"], numbers(row["record"]))
        for row in rows
    }
    expected = plainly(images)
    if engine == "Spark":  # whose reader leaves out files of no bytes
        del expected["empty.jpg"]
    assert found == expected
    assert "no image" in found["broken.png"][0]
    assert sorted(name for name, (_, labels, _) in found.items() if labels) == ["a.png", "b 猫.jpg", "c.webp"]


@pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning")
def test_the_function_for_spark_without_a_session(images: dict[str, bytes], tmp_path: Path) -> None:
    """No Java is needed: what Spark's workers call is called here."""
    pytest.importorskip("pyspark")
    import pandas
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.types import StructType

    columns = StructType()
    for name in ("record", "error", "labels"):
        columns.add(name, "string")
    segment = predict_batch_udf(make_predict_fn(**CONFIG), return_type=columns, batch_size=2)
    paths = [str(tmp_path / "photos" / name) for name in images]
    for given in (list(images.values()), paths):
        table = pandas.concat(segment.func(iter([pandas.Series(given)])))
        expected = plainly(images)
        decoded = [base64.b64decode(each) for each in table["labels"]]
        assert decoded == [labels for _, labels, _ in expected.values()]
        assert [bool(each) for each in table["error"]] == [bool(error) for error, *_ in expected.values()]


def test_a_batch_of_none(tmp_path: Path) -> None:
    predict = make_predict_fn(**CONFIG)()
    assert {name: len(each) for name, each in predict(np.array([], dtype=object)).items()} == {
        "record": 0,
        "error": 0,
        "labels": 0,
    }
