"""The folder of a run: resuming, locks, changed settings, what is removed and what stays."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_helpers import VERSIONS, FakeSegmenter, contents, go, lines, save

from ovseg.errors import ConfigError
from ovseg.inputs import find_images
from ovseg.record_file import RecordFile, atomic
from ovseg.run_folder import RunFolder, differences


def test_second_run_does_what_is_left(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(photos, out)
    before = {name: (out / name).stat().st_mtime_ns for name in contents(out)}
    again = FakeSegmenter()
    assert go(photos, out, again).skipped == 6
    assert again.batches == []
    assert before == {name: (out / name).stat().st_mtime_ns for name in contents(out)}

    (out / "labels/im1.png").unlink()
    save(photos / "im2.png", 77)
    save(photos / "new.png", 78)
    summary = go(photos, out, again)
    assert (summary.done, summary.skipped) == (3, 4)
    assert len(lines(out / "results.jsonl")) == 7


def test_another_format_later_keeps_the_first(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(photos, out)
    assert go(photos, out, formats=("overlay",)).done == 6
    assert set(lines(out / "results.jsonl")[0]["outputs"]) == {"labels", "overlay"}
    assert go(photos, out, formats=("labels", "overlay")).skipped == 6


def test_image_that_breaks_later_loses_its_old_result(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(photos, out)
    (photos / "im0.png").write_bytes(b"broken now")
    assert go(photos, out).failed[0][0] == "im0.png"
    assert not (out / "labels/im0.png").exists()
    assert "im0.png" not in {each["image"] for each in lines(out / "results.jsonl")}


def test_failure_of_a_missing_output_drops_the_record(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(photos, out, formats=("labels", "overlay"))
    (out / "labels/im0.png").unlink()
    segmenter = FakeSegmenter()

    def fail(image: Any) -> None:
        raise RuntimeError("no memory")

    segmenter.on_image = fail
    assert go(photos, out, segmenter, formats=("labels", "overlay")).failed == [("im0.png", "no memory")]
    assert "im0.png" not in {each["image"] for each in lines(out / "results.jsonl")}
    assert not (out / "overlays/im0.jpg").exists()


def test_other_settings_are_refused_by_name(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(photos, out, settings={"method": "maskclip", "options": {"window": 224}, "words": ["cat"]})
    before = contents(out)
    with pytest.raises(
        ConfigError, match=r"method: was maskclip, now sclip.*options\.window: was 224, now 336"
    ):
        go(photos, out, settings={"method": "sclip", "options": {"window": 336}, "words": ["cat"]})
    assert contents(out) == before
    with (
        pytest.raises(ConfigError, match="ovseg: was 1, now 2"),
        RunFolder(out, json.loads((out / "run.json").read_text())["settings"], {"ovseg": "2"}),
    ):
        pass


def test_overwrite_removes_only_what_the_run_wrote(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(photos, out, settings={"a": 1}, formats=("labels", "overlay"))
    (out / "labels/mine.txt").write_text("keep")
    (out / "notes.md").write_text("keep")
    images = find_images([photos])[:1]
    go(photos, out, settings={"a": 2}, overwrite=True, images=images)
    left = set(contents(out))
    assert left == {"labels/mine.txt", "notes.md", f"labels/{Path(images[0].name).stem}.png"}
    assert not (out / "overlays").exists()


def test_foreign_folder_is_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"not a run of ovseg.*thesis\.tex"):
        go(photos, out)
    assert [each.name for each in out.iterdir() if not each.name.startswith(".")] == ["thesis.tex"]
    go(photos, out, overwrite=True)
    assert (out / "thesis.tex").read_text() == "x"
    go(photos, out)


def test_damaged_manifest_is_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(photos, out)
    (out / "run.json").write_text('{"format": "ovs')
    with pytest.raises(ConfigError, match=r"run\.json' cannot be read"):
        go(photos, out)
    assert go(photos, out, overwrite=True).done == 6


def test_records_cannot_remove_files_outside(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(photos, out)
    victim = tmp_path / "victim.txt"
    victim.write_text("x")
    for target in ("../victim.txt", str(victim)):
        with open(out / "results.jsonl", "a") as stream:
            stream.write(json.dumps({"image": target, "stem": "v", "outputs": {"labels": target}}) + "\n")
    go(photos, out, overwrite=True)
    assert victim.exists()


def test_torn_line_is_repaired(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(photos, out)
    whole = (out / "results.jsonl").read_bytes()
    (out / "results.jsonl").write_bytes(whole[:-40])
    (out / "labels/.ovseg-123-4.tmp").write_bytes(b"half")
    summary = go(photos, out)
    assert (summary.done, summary.skipped) == (1, 5)
    assert len(lines(out / "results.jsonl")) == 6
    assert not list(out.rglob(".ovseg-*.tmp"))


def test_other_image_of_the_same_name_is_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(photos, out)
    save(tmp_path / "other/im0.png", 50, (30, 40))
    with pytest.raises(ConfigError, match=r"another 'im0\.png'"):
        go(tmp_path / "other", out)


def test_moved_images_are_still_done(photos: Path, tmp_path: Path) -> None:
    go(photos, tmp_path / "out")
    photos.rename(tmp_path / "moved")
    assert go(tmp_path / "moved", tmp_path / "out").skipped == 6


def test_one_process_at_a_time(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with RunFolder(out, {}, VERSIONS), pytest.raises(ConfigError, match="another process"):
        go(photos, out, settings={})
    go(photos, out, settings={})


def test_new_versions_are_noted(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "out", {}, VERSIONS):
        pass
    with RunFolder(tmp_path / "out", {}, {"ovseg": "1", "torch": "3"}) as folder:
        assert "torch: was 2, now 3" in folder.notices[0]


def test_atomic_file_appears_whole_or_not(tmp_path: Path) -> None:
    target = tmp_path / "deep/x.bin"
    with pytest.raises(TypeError), atomic(target) as stream:
        stream.write(b"half" if target.exists() else None)  # type: ignore[arg-type]
    assert list(target.parent.iterdir()) == []
    with atomic(target) as stream:
        stream.write(b"whole")
        assert not target.exists()
    assert target.read_bytes() == b"whole"
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_differences_are_named() -> None:
    old = {"a": 1, "b": {"c": [1], "d": None}, "classes": [{"name": "cat"}]}
    assert differences(old, old) == []
    new = {"a": 1, "b": {"c": [2]}, "classes": [{"name": "cat"}, {"name": "dog"}]}
    assert differences(old, new) == ["b.c: was [1], now [2]", "classes: was cat, now cat, dog"]


def test_files_named_in_another_encoding(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (24, 16), (9, 99, 9)).save(content, "PNG")
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/caf\xe9.png"))
    path.parent.mkdir()
    try:
        path.write_bytes(content.getvalue())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    out = tmp_path / "out"
    assert go(path.parent, out).done == 1
    assert go(path.parent, out).skipped == 1


def test_records_stay_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    file = RecordFile(path)
    for number in range(5):
        file[f"{number}.jpg"] = {"image": f"{number}.jpg", "stem": str(number), "name": "Füße"}
    file["2.jpg"] = {"image": "2.jpg", "stem": "two"}
    del file["3.jpg"]
    path.write_bytes(path.read_bytes() + b'{"image": "torn.jp')
    assert (len(file), file["2.jpg"]["stem"], file["4.jpg"]["name"]) == (4, "two", "Füße")
    assert "3.jpg" not in file
    file.rewrite(["4.jpg", "absent", "2.jpg"])
    read = RecordFile(path)
    read.load(needs="stem")
    assert list(read) == list(file) == ["4.jpg", "2.jpg", "0.jpg", "1.jpg"]
    assert dict(read) == dict(file)
    assert path.read_bytes().count(b"\n") == 4
    read["5.jpg"] = {"image": "5.jpg", "stem": "5"}
    assert read["5.jpg"]["stem"] == "5"
    read.load(needs="other")
    assert not read
