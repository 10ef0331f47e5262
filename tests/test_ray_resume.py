"""tools/infer_ray.py: what a plain run writes, also when its driver or a worker was killed with -9."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from run_helpers import contents, lines, save
from support import load_tool

ROOT = Path(__file__).parents[1]
#: Slow enough that a run is still under way when its first rows are there.
OPTIONS = [
    *("-c", "cat, grass, sky", "--method", "proxyclip", "--encoder", "bundled", "--device", "cpu"),
    *("--opts", "short_side=224", "crop=112", "stride=56", "--formats", "labels,coco"),
]
WORKER = "ray::MapWorker(MapBatches(Segmenter))"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number in range(12):
        save(folder / f"sub/{number} 猫.jpg" if number % 3 else folder / f"{number}.png", number, (96, 128))
    (folder / "0 to be mended.png").write_bytes(b"no image")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def start(photos: Path, out: Path) -> psutil.Popen:
    """A process of its own: Ray talks over sockets, which this suite forbids."""
    command = [sys.executable, "tools/infer_ray.py", photos, *OPTIONS, "-o", out]
    few = ["--workers", "2", "--batch-size", "1", "--rows-per-file", "1"]
    settings = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    with open(out.with_suffix(".log"), "w") as log:
        return psutil.Popen([*command, *few], cwd=ROOT, env=os.environ | settings, stdout=log, stderr=log)


def files(out: Path) -> set[Path]:
    return set((out / "rows").glob("rows-*.parquet"))


def wait(process: psutil.Popen, out: Path, enough: Callable[[], Any]) -> Any:
    """Waits while the run is under way."""
    while process.poll() is None:
        if found := enough():
            return found
        time.sleep(0.05)
    pytest.fail(f"the run ended too early: {out.with_suffix('.log').read_text()[-3000:]}")


def workers(process: psutil.Popen) -> list[psutil.Process]:
    found = []
    for child in process.children(recursive=True):
        try:
            found += [child] if child.cmdline()[0].startswith(WORKER) else []
        except (psutil.Error, IndexError):
            continue
    return found


@pytest.mark.timeout(600)
def test_killed_runs_lose_nothing_and_double_nothing(photos: Path, tmp_path: Path) -> None:
    """One test, because starting Ray and its workers is most of its time."""
    pytest.importorskip("ray")
    from pyarrow import parquet

    out = tmp_path / "ray"
    started: list[psutil.Process] = []
    try:
        driver = start(photos, out)
        wait(driver, out, lambda: len(files(out)) >= 3)
        at_work = workers(driver)
        started = [driver, *driver.children(recursive=True)]
        driver.kill()
        _, left = psutil.wait_procs([driver, *at_work], timeout=60)
        assert at_work
        assert not left, "workers of a killed driver go on"
        before = parquet.read_table(out / "rows").to_pylist()
        good = {row["image"] for row in before if not row["error"]}
        assert 0 < len(good) < 12

        Image.new("RGB", (128, 96)).save(photos / "0 to be mended.png")
        rows_before = files(out)
        driver = start(photos, out)
        wait(driver, out, lambda: files(out) - rows_before)
        started += [driver, *driver.children(recursive=True)]
        workers(driver)[0].kill()
        assert driver.wait(timeout=400) == 1
    finally:  # agents of Ray outlive a killed driver for a while
        for process in started:
            if process.is_running():
                process.kill()
    log = out.with_suffix(".log").read_text()
    assert f"{13 - len(good)} of 14 images, {len(good)} done earlier" in log
    assert "broken.png" in log

    plain = tmp_path / "plain"
    load_tool(ROOT / "tools/infer.py").main([str(photos), *OPTIONS, "-q", "-o", str(plain)])
    pictures = [
        {name: each for name, each in contents(run).items() if name.startswith(("labels/", "coco/"))}
        for run in (out, plain)
    ]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 2 * 13
    rows = parquet.read_table(out / "rows").to_pylist()
    assert len(rows) == len({row["image"] for row in rows}) == 14
    records = {row["image"]: json.loads(row["record"]) for row in rows}
    for record in lines(plain / "results.jsonl"):
        assert records[record["image"]]["classes"] == record["classes"]


def test_only_good_rows_are_kept_and_none_is_overwritten(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from pyarrow import parquet

    from ovseg.engines.ray import _next_number, _write_rows, done_images

    def row(image: str, error: str = "") -> dict[str, str]:
        return {"image": image, "error": error, "record": "{}", "outputs": "{}"}

    _write_rows(tmp_path, 0, [row("a"), row("b", "no image")])
    _write_rows(tmp_path, 1, [row("c", "no image")])
    (tmp_path / "rows/rows-000003.parquet").write_bytes(b"PAR1 torn")
    _write_rows(tmp_path, 4, [row("a"), row("d")])
    assert done_images(tmp_path) == {"a", "d"}
    _write_rows(tmp_path, _next_number(tmp_path), [row("b")])
    kept = {path.name: parquet.read_table(path).to_pylist() for path in sorted(files(tmp_path))}
    assert kept == {
        "rows-000000.parquet": [row("a")],
        "rows-000004.parquet": [row("d")],
        "rows-000005.parquet": [row("b")],
    }
    assert done_images(tmp_path) == {"a", "b", "d"}


def test_one_driver_at_a_time(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from filelock import FileLock

    from ovseg.engines.ray import run
    from ovseg.errors import ConfigError

    with FileLock(tmp_path / ".ovseg.lock"), pytest.raises(ConfigError, match="another process"):
        run(str(photos), tmp_path, {})
