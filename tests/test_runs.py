"""Runs over folders: broken images, failures, interruptions."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_helpers import VERSIONS, FakeSegmenter, contents, go, lines, poison, save

from ovseg.batch import BatchPredictor, Writer
from ovseg.errors import ConfigError, ImageError, OvsegError, VocabularyError
from ovseg.inputs import ImageFile, find_images
from ovseg.outputs.label_files import read_labels
from ovseg.outputs.run_files import class_table
from ovseg.outputs.writers import build_writers
from ovseg.records import class_statistics
from ovseg.run_folder import RunFolder
from ovseg.runs import Outcome, read_ahead, run


def labels_by(write: Any) -> Writer:
    return Writer("labels", "labels", ".png", write)


def test_outputs_are_named_after_the_input(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = go(photos, out, formats=("labels", "overlay", "scores"))
    assert (summary.done, summary.skipped, summary.failed) == (6, 0, [])
    names = [each.name for each in find_images([photos])]
    records = lines(out / "results.jsonl")
    assert [each["image"] for each in records] == names
    assert (out / "labels/sub/a b 猫.png").is_file()
    assert (out / "overlays/sub/-dash.jpg").is_file()
    assert len(list(out.rglob("*.npz"))) == 6
    assert (out / "errors.jsonl").read_bytes() == b""
    for record in records:
        labels, classes, void = read_labels(out / record["outputs"]["labels"])
        assert labels.shape == (record["height"], record["width"])
        assert classes == ["dark", "middle", "bright"]
        assert void == 255
        for each in record["classes"]:
            assert each["pixels"] == (labels == each["id"]).sum()
            assert each["share"] == pytest.approx(each["pixels"] / labels.size, abs=1e-6)
            assert each["confidence"] == 0.5
        assert [each["pixels"] for each in record["classes"]] == sorted(
            (each["pixels"] for each in record["classes"]), reverse=True
        )
        with np.load(out / record["outputs"]["scores"]) as scores:
            assert scores["scores"].dtype == np.float16
            assert scores["names"].tolist() == classes
        with Image.open(out / record["outputs"]["overlay"]) as picture:
            assert picture.width > record["width"]
    manifest = json.loads((out / "run.json").read_text())
    assert manifest["settings"] == {"method": "fake"}
    assert manifest["versions"] == VERSIONS
    assert len(manifest["fingerprint"]) == 64


def test_batches_do_not_change_results(photos: Path, tmp_path: Path) -> None:
    single, batched = FakeSegmenter(), FakeSegmenter()
    go(photos, tmp_path / "a", single, batch_size=1)
    go(photos, tmp_path / "b", batched, batch_size=4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert single.batches == [1] * 6
    assert batched.batches == [2, 4] or batched.batches == [4, 2]
    order = [each["image"] for each in lines(tmp_path / "b/results.jsonl")]
    assert order == [each.name for each in find_images([photos])]


def test_same_stem_does_not_collide(tmp_path: Path) -> None:
    save(tmp_path / "in/a.jpg", 1)
    save(tmp_path / "in/a.png", 2)
    out = tmp_path / "out"
    go(tmp_path / "in", out)
    outputs = [each["outputs"]["labels"] for each in lines(out / "results.jsonl")]
    assert outputs == ["labels/a.jpg.png", "labels/a.png.png"]
    save(tmp_path / "in/b.jpg", 3)
    go(tmp_path / "in", out)
    save(tmp_path / "in/b.png", 4)
    assert go(tmp_path / "in", out).skipped == 3
    outputs = [each["outputs"]["labels"] for each in lines(out / "results.jsonl")]
    assert outputs[2:] == ["labels/b.png", "labels/b.png.png"]


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_is_reported_and_the_rest_is_done(tmp_path: Path, seed: int) -> None:
    """Every image is done or reported, never both, never neither; and the intact ones are done."""
    rng = np.random.default_rng(seed)
    intact = set()
    for number, form in enumerate(["png", "jpg", "webp", "tiff", "gif", "bmp", "avif"] * 4):
        path = save(tmp_path / "in" / f"{number}.{form}", number)
        content = bytearray(path.read_bytes())
        kind = rng.integers(0, 4)
        if kind == 0:
            content = content[: rng.integers(0, len(content))]
        elif kind == 1:
            for position in rng.integers(0, len(content), 8):
                content[position] = rng.integers(0, 256)
        elif kind == 2:
            content = bytearray(rng.bytes(int(rng.integers(0, 300))))
        else:
            intact.add(path.name)
        path.write_bytes(content)
    out = tmp_path / "out"
    summary = go(tmp_path / "in", out, batch_size=3)
    done = {each["image"] for each in lines(out / "results.jsonl")}
    failed = {each["image"]: each["reason"] for each in lines(out / "errors.jsonl")}
    assert done | set(failed) == {f"{each.name}" for each in (tmp_path / "in").iterdir()}
    assert not done & set(failed)
    assert intact <= done
    assert failed
    assert all(failed.values())
    assert summary.done == len(done)
    assert dict(summary.failed) == failed
    assert not list(out.rglob(".ovseg-*"))


def test_broken_images_of_every_kind(photos: Path, tmp_path: Path) -> None:
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.jpg").write_text("hello")
    save(photos / "dot.png", hw=(1, 1))
    save(photos / "line.png", hw=(10, 30_000))
    (photos / "cut.png").write_bytes((photos / "im0.png").read_bytes()[:300])
    (photos / "gone.png").symlink_to(tmp_path / "nothing.png")
    out = tmp_path / "out"
    summary = go(photos, out)
    assert summary.done == 6
    reasons = dict(summary.failed)
    assert "empty" in reasons["empty.jpg"]
    assert "not an image" in reasons["text.jpg"]
    assert "at least 8" in reasons["dot.png"]
    assert "times the other" in reasons["line.png"]
    assert "damaged PNG" in reasons["cut.png"]
    assert "No such file" in reasons["gone.png"]
    assert not any(str(tmp_path) in reason for reason in reasons.values())

    save(photos / "text.jpg", 9)
    again = go(photos, out)
    assert (again.done, again.skipped, len(again.failed)) == (1, 6, 5)
    assert "text.jpg" not in {each["image"] for each in lines(out / "errors.jsonl")}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_model_failure_of_one_image_spares_its_batch(photos: Path, tmp_path: Path, batch_size: int) -> None:
    poison(photos / "im1b.png")
    out = tmp_path / "out"
    summary = go(photos, out, batch_size=batch_size)
    assert summary.done == 6
    assert summary.hint == ""
    (error,) = lines(out / "errors.jsonl")
    assert error["image"] == "im1b.png"
    assert error["stage"] == "model"
    assert error["error"] == "RuntimeError"
    assert "run_helpers" in error["traceback"]


def test_failure_of_every_image_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        poison(tmp_path / "in" / f"{number}.png")
    summary = go(tmp_path / "in", tmp_path / "out")
    assert len(summary.failed) == 3
    assert "fault of the set-up" in summary.hint


def test_setup_errors_are_raised(photos: Path, tmp_path: Path) -> None:
    segmenter = FakeSegmenter()

    def refuse(image: Any) -> None:
        raise VocabularyError("prompt too long")

    segmenter.on_image = refuse
    with pytest.raises(VocabularyError):
        go(photos, tmp_path / "out", segmenter)


@pytest.mark.parametrize("at", range(1, 6))
def test_interruption_leaves_nothing_half_and_resumes(photos: Path, tmp_path: Path, at: int) -> None:
    go(photos, tmp_path / "expected")
    out = tmp_path / "out"
    seen = []

    def stop(outcome: Outcome) -> None:
        seen.append(outcome)
        if len(seen) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(photos, out, on_outcome=stop)
    assert len(lines(out / "results.jsonl")) == at
    assert go(photos, out).skipped == at
    assert contents(out) == contents(tmp_path / "expected")


def test_interruption_while_writing(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write(stream: Any, image: np.ndarray, result: Any) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    with RunFolder(out, {}, VERSIONS) as folder, pytest.raises(KeyboardInterrupt):
        run(BatchPredictor(FakeSegmenter(), None, [labels_by(write)]), find_images([photos]), folder)
    assert contents(out) == {}


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_kill_minus_nine_and_resume(photos: Path, tmp_path: Path) -> None:
    """A process killed while it writes the third image: nothing lost, nothing doubled, no lock left."""
    out = tmp_path / "out"
    script = f"""
        import os, signal, sys
        sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
        from run_helpers import FakeSegmenter
        from ovseg.inputs import find_images
        from ovseg.run_folder import RunFolder
        from ovseg.batch import BatchPredictor
        from ovseg.runs import run
        from ovseg.outputs.writers import build_writers
        count = 0
        move = os.replace
        def replace(source, target):  # the file is whole and has not got its name yet
            global count
            count += str(target).endswith(".png")
            if count == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            move(source, target)
        os.replace = replace
        with RunFolder({str(out)!r}, {{"method": "fake"}}, {VERSIONS!r}) as folder:
            predict = BatchPredictor(FakeSegmenter(), None, build_writers(["labels"]))
            run(predict, find_images([{str(photos)!r}]), folder)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert len(list(out.rglob(".ovseg-*.tmp"))) == 1
    assert len(list((out / "labels").rglob("*.png"))) == 2
    summary = go(photos, out)
    assert (summary.done, summary.skipped) == (4, 2)
    go(photos, tmp_path / "expected")
    assert contents(out) == contents(tmp_path / "expected")
    assert Counter(each["image"] for each in lines(out / "results.jsonl")).most_common(1)[0][1] == 1


def test_full_disk_stops_the_run_with_advice(photos: Path, tmp_path: Path) -> None:
    def write(stream: Any, image: np.ndarray, result: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunFolder(tmp_path / "out", {}, VERSIONS) as folder, pytest.raises(OvsegError, match="make room"):
        run(BatchPredictor(FakeSegmenter(), None, [labels_by(write)]), find_images([photos]), folder)


def test_a_writer_that_fails_for_one_image(photos: Path, tmp_path: Path) -> None:
    def write(stream: Any, image: np.ndarray, result: Any) -> None:
        if image.shape[0] == 24:
            raise ValueError("cannot encode")
        stream.write(b"x")

    with RunFolder(tmp_path / "out", {}, VERSIONS) as folder:
        predict = BatchPredictor(FakeSegmenter(), None, [labels_by(write)])
        summary = run(predict, find_images([photos]), folder)
    assert summary.done == 4
    assert {reason for _, reason in summary.failed} == {"cannot encode"}
    assert len(contents(tmp_path / "out")) == 4


def test_reading_ahead_keeps_order_and_bounds() -> None:
    files = [ImageFile(Path(str(number)), str(number)) for number in range(40)]
    running: list[int] = []
    peak = 0

    def read(image: ImageFile) -> np.ndarray:
        nonlocal peak
        running.append(1)
        peak = max(peak, len(running))
        if int(image.name) % 7 == 3:
            raise ImageError("broken")
        return np.full((10, 10, 3), int(image.name), np.uint8)

    seen = []
    for image, pixels in read_ahead(files, read, threads=3, ahead=5, max_pixels=300):
        running.pop()
        seen.append(image.name)
        if int(image.name) % 7 == 3:
            assert isinstance(pixels, ImageError)
        else:
            assert isinstance(pixels, np.ndarray)
            assert pixels[0, 0, 0] == int(image.name)
    assert seen == [str(number) for number in range(40)]
    assert peak <= 6


def test_statistics_count_void_apart() -> None:
    image = np.array([[[0] * 3, [250] * 3, [10] * 3, [251] * 3]], np.uint8)
    found, void = class_statistics(next(FakeSegmenter().answers([image], None)).segmentation)
    assert [(each["name"], each["pixels"]) for each in found] == [("bright", 2), ("dark", 1)]
    assert void == 1


def test_more_than_255_classes_are_sixteen_bit(photos: Path, tmp_path: Path) -> None:
    segmenter = FakeSegmenter(tuple(f"class {number}" for number in range(300)))
    go(photos, tmp_path / "out", segmenter)
    labels, classes, void = read_labels(tmp_path / "out/labels/im0.png")
    assert labels.max() > 255
    assert len(classes) == 300
    assert void == 65535


def test_label_palette_shows_the_class_colours(photos: Path, tmp_path: Path) -> None:
    go(photos, tmp_path / "out")
    table = json.loads(class_table(("dark", "middle", "bright"), 255))
    with Image.open(tmp_path / "out/labels/im0.png") as picture:
        assert picture.mode == "P"
        labels, colors = np.array(picture), np.array(picture.convert("RGB"))
    for each in table["classes"]:
        assert (colors[labels == each["id"]] == each["color"]).all()
    assert table["void"] == 255


def test_unknown_format_names_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"'label5'.*labels.*overlay.*scores"):
        build_writers(["label5"])
    assert [each.kind for each in build_writers(["png", "labels", " Overlay "])] == ["labels", "overlay"]
