from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from run_helpers import FakeSegmenter, contents, lines, poison
from support import load_tool

from ovseg.errors import ConfigError
from ovseg.inputs import ImageFile
from ovseg.run_folder import RunFolder
from ovseg.shards import Shard, launched, parse_shard

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_tool(TOOLS / "infer.py")
    monkeypatch.setattr(module, "build_predictor", lambda *given, **options: FakeSegmenter())
    return module


def infer(tool: ModuleType, photos: Path, out: Path, *more: str) -> int:
    formats = "labels,overlay,coco"
    return tool.main([str(photos), "-c", "dark, bright", "-o", str(out), "-q", "--formats", formats, *more])


def merge(out: Path, *more: str) -> int:
    return load_tool(TOOLS / "merge_runs.py").main([str(out), *more])


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("keep", [False, True])
def test_merged_shards_are_what_one_run_writes(
    tool: ModuleType, photos: Path, tmp_path: Path, count: int, keep: bool
) -> None:
    (photos / "im1.jpg").write_bytes((photos / "im0.png").read_bytes())  # shares its stem with im1.png
    poison(photos / "sub" / "bad.png")
    assert infer(tool, photos, tmp_path / "one") == 1
    for index in reversed(range(1, count + 1)):
        infer(tool, photos, tmp_path / "many", "--shard", f"{index}/{count}")
    assert merge(tmp_path / "many", *(["--keep"] if keep else [])) == 1
    found = contents(tmp_path / "many")
    merged = {name: each for name, each in found.items() if not name.startswith("shards")}
    assert merged == contents(tmp_path / "one")
    one, many = ((tmp_path / run / "results.jsonl").read_bytes() for run in ("one", "many"))
    assert one == many
    assert [each["image"] for each in lines(tmp_path / "many/timings.jsonl")] == [
        each["image"] for each in lines(tmp_path / "one/results.jsonl")
    ]
    assert [each["image"] for each in lines(tmp_path / "many/errors.jsonl")] == ["sub/bad.png"]
    assert (tmp_path / "many/shards").exists() == keep
    (photos / "sub" / "bad.png").unlink()
    assert infer(tool, photos, tmp_path / "many") == 0, "the merged folder is a run that goes on"


def test_a_stopped_shard_is_resumed_alone(
    tool: ModuleType, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infer(tool, photos, tmp_path / "out", "--shard", "1/2")
    infer(tool, photos, tmp_path / "out", "--shard", "2/2")
    results = tmp_path / "out/shards/2-of-2/results.jsonl"
    kept, *_ = results.read_bytes().splitlines(keepends=True)
    results.write_bytes(kept + b'{"image": "torn')
    assert merge(tmp_path / "out") == 2
    assert "2 of 3 images are missing" in capsys.readouterr().err
    assert infer(tool, photos, tmp_path / "out", "--shard", "2/2") == 0
    assert merge(tmp_path / "out") == 0
    assert infer(tool, photos, tmp_path / "one") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "one")


def test_what_cannot_be_merged(
    tool: ModuleType, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert merge(out) == 2
    infer(tool, photos, out, "--shard", "1/2")
    assert merge(out) == 2
    infer(tool, photos, out, "--shard", "2/2")
    with RunFolder(out / "shards/2-of-2", *stored(out / "shards/2-of-2")):
        assert merge(out) == 2
    errors = capsys.readouterr().err
    for each in ("has no shards", "lacks shard 2 of 2", "another process is writing"):
        assert each in errors
    (photos / "im0.png").unlink()
    assert infer(tool, photos, out, "--shard", "1/2") == 2
    assert "other images" in capsys.readouterr().err


def stored(path: Path) -> tuple[dict, dict]:
    manifest = json.loads((path / "run.json").read_text())
    return manifest["settings"], manifest["versions"]


def test_every_image_is_in_one_shard() -> None:
    images = [ImageFile(Path(str(number)), str(number)) for number in range(10)]
    parts = [Shard(index, 4).images(images) for index in range(1, 5)]
    assert sorted(image for part in parts for image in part) == sorted(images)
    assert {len(each) for each in parts} == {2, 3}


def test_names_and_launchers() -> None:
    assert parse_shard("3/8") == Shard(3, 8)
    assert launched("pytorch", {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == (Shard(3, 4), 1)
    assert launched("slurm", {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}) == (Shard(1, 2), 0)
    for text in ("0/3", "4/3", "1", "a/b"):
        with pytest.raises(ConfigError):
            parse_shard(text)
    with pytest.raises(ConfigError, match="torchrun"):
        launched("pytorch", {})
