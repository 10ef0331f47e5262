"""Videos: frames by stride, an overlay video that plays, smooth labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
import torch
from run_helpers import FakeSegmenter, lines
from support import load_tool, random_bank

from ovseg.errors import ConfigError, ImageError
from ovseg.resampling import Resampling
from ovseg.score_map import ScoreMap
from ovseg.structures import DenseFeatures
from ovseg.temporal import TemporalAverage
from ovseg.video import VideoWriter, read_frames, read_info

TOOL = Path(__file__).parents[1] / "tools" / "infer_video.py"
HW = (48, 80)


def frame(number: int, hw: tuple[int, int] = HW) -> np.ndarray:
    """A bright block that moves to the right over a dark ground that lightens."""
    image = np.full((*hw, 3), 20 + 4 * number, np.uint8)
    image[10:40, 4 * number : 4 * number + 20] = 230
    return image


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """12 frames at 24 a second, with sound."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=24)
        video.height, video.width, video.pix_fmt = *HW, "yuv420p"
        video.bit_rate = 4_000_000
        sound = container.add_stream("aac", rate=16000)
        for number in range(12):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame(number), format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
        container.mux(video.encode())
    return path


def test_frames_come_by_stride_and_look_as_they_should(clip: Path) -> None:
    found = list(read_frames(clip, 5))
    assert [each.index for each in found] == [0, 5, 10]
    assert [each.seconds for each in found] == pytest.approx([0, 5 / 24, 10 / 24])
    for each in found:
        assert each.image.shape == (*HW, 3)
        assert np.abs(each.image.astype(int) - frame(each.index)).mean() < 6
    info = read_info(clip)
    assert (info.image_hw, info.rate, info.frames, info.audio) == (HW, Fraction(24), 12, True)


def test_what_is_no_video_is_an_error(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ImageError, match=r"text\.mp4: not a video"):
        list(read_frames(tmp_path / "text.mp4"))
    with pytest.raises(ImageError, match="not a video"):
        read_info(tmp_path / "missing.mp4")
    with pytest.raises(ConfigError, match="stride is 0"):
        read_frames(clip, 0)


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_written_videos_play(tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if encoder not in av.codecs_available:
        pytest.skip(f"PyAV was built without {encoder}")
    import ovseg.video

    monkeypatch.setattr(ovseg.video, "ENCODERS", {encoder: ovseg.video.ENCODERS[encoder]})
    with VideoWriter(tmp_path / "a.mp4", Fraction(24, 5)) as writer:
        for number in range(4):
            writer.write(frame(number, (49, 81)))
        with pytest.raises(ImageError, match="a frame of 20x30"):
            writer.write(np.zeros((20, 30, 3), np.uint8))
    found = list(read_frames(tmp_path / "a.mp4"))
    assert read_info(tmp_path / "a.mp4").rate == Fraction(24, 5)
    assert len(found) == 4
    assert found[2].image.shape == (48, 80, 3)
    assert np.abs(found[2].image.astype(int) - frame(2, (49, 81))[:48, :80]).mean() < 8


def score_maps(count: int, hw: tuple[int, int] = (3, 4)) -> Iterator[tuple[ScoreMap, DenseFeatures]]:
    bank = random_bank()
    generator = torch.Generator().manual_seed(1)
    resampling = Resampling.bilinear(hw, (24, 32))
    for _ in range(count):
        cosine = torch.rand(1, len(bank.embeddings), *hw, generator=generator)
        features = DenseFeatures(torch.zeros(1, 2, *hw), resampling)
        yield ScoreMap(cosine, bank, 40.0, resampling), features


class TestTemporalAverage:
    def test_it_is_the_exponential_average(self) -> None:
        step, maps = TemporalAverage(0.6), list(score_maps(4))
        found = [step(each, features).cosine for each, features in maps]
        torch.testing.assert_close(found[0], maps[0][0].cosine)
        weights = [0.6**3, 0.4 * 0.6**2, 0.4 * 0.6, 0.4]
        expected = sum(w * each.cosine for w, (each, _) in zip(weights, maps, strict=True))
        torch.testing.assert_close(found[3], expected)

    def test_batches_make_no_difference(self) -> None:
        one, together, maps = TemporalAverage(0.5), TemporalAverage(0.5), list(score_maps(4))
        single = torch.cat([one(each, features).cosine for each, features in maps])
        batch = ScoreMap(torch.cat([m.cosine for m, _ in maps]), maps[0][0].bank, 40.0, maps[0][0].resampling)
        features = DenseFeatures(torch.zeros(4, 2, 3, 4), maps[0][0].resampling)
        torch.testing.assert_close(together(batch, features).cosine, single)

    def test_a_frame_that_is_asked_twice_counts_once(self) -> None:
        step, twice = TemporalAverage(0.5), TemporalAverage(0.5)
        for score_map, features in score_maps(3):
            expected = step(score_map, features).cosine
            torch.testing.assert_close(twice(score_map, features).cosine, expected)
            torch.testing.assert_close(twice(score_map, features).cosine, expected)

    def test_it_begins_anew(self) -> None:
        step, (first, second) = TemporalAverage(0.5), list(score_maps(2))
        step(*first)
        step.reset()
        torch.testing.assert_close(step(*second).cosine, second[0].cosine)
        [(other, features)] = list(score_maps(1, (5, 6)))
        torch.testing.assert_close(step(other, features).cosine, other.cosine)

    def test_a_wrong_decay(self) -> None:
        for decay in (-0.1, 1.0):
            with pytest.raises(ConfigError, match="below 1"):
                TemporalAverage(decay)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_tool(TOOL)
    module.fake = FakeSegmenter()
    monkeypatch.setattr(module, "build_predictor", lambda arguments, tasks: module.fake)
    return module


def test_the_tool_writes_a_video_and_numbers(
    tool: ModuleType, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, words = tmp_path / "out", "dark, middle, bright"
    arguments = [str(clip), "-c", words, "--stride", "3", "-o", str(out), "--batch-size", "3"]
    assert tool.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "sound of the video is left out" in printed
    assert "4 frames in" in printed
    assert tool.fake.batches == [3, 1]
    found = lines(out / "frames.jsonl")
    assert [each["frame"] for each in found] == [0, 3, 6, 9]
    assert found[1]["time"] == pytest.approx(3 / 24, abs=1e-3)
    assert found[0]["classes"][0]["name"] == "dark"
    bright = next(each for each in found[0]["classes"] if each["name"] == "bright")
    assert bright["share"] == pytest.approx(600 / HW[0] / HW[1], rel=0.1)
    assert [
        each["name"] for each in json.loads((out / "classes.json").read_text())["classes"]
    ] == words.split(", ")
    info = read_info(out / "overlay.mp4")
    assert (info.rate, info.frames, info.audio) == (Fraction(8), 4, False)
    assert info.image_hw[0] >= HW[0]
    assert info.image_hw[1] > HW[1]  # the list of classes
    assert not list(out.glob(".*.part"))


def test_wrong_use_says_what_would_be_right(
    tool: ModuleType, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    out = ["-o", str(tmp_path / "out")]
    for arguments, status, message in (
        ([str(clip), "-c", "a", "--stride", "0"], 2, "--stride is 0"),
        ([str(clip), "-c", "a", "--task", "segment,count"], 2, "a video shows one task"),
        ([str(tmp_path / "text.mp4"), "-c", "a"], 1, "not a video"),
    ):
        assert tool.main([*arguments, *out]) == status
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("tiny_weights")
def test_smoothing_changes_labels_and_is_wired_into_the_tool(clip: Path, tmp_path: Path) -> None:
    module, numbers = load_tool(TOOL), []
    for decay in ("0", "0.9"):
        out = tmp_path / decay
        arguments = [
            str(clip),
            "-c",
            "cat, dog, sky",
            "--encoder",
            "tiny",
            "--device",
            "cpu",
            "-q",
            "-o",
            str(out),
        ]
        options = ["--opts", "short_side=None", "crop=None", "stride=None"]
        assert module.main([*arguments, "--smooth", decay, "--limit", "5", *options]) == 0
        numbers.append([_shares(each) for each in lines(out / "frames.jsonl")])
    assert numbers[0][0] == numbers[1][0]
    assert numbers[0] != numbers[1]


def _shares(record: dict[str, Any]) -> dict[str, float]:
    return {each["name"]: each["confidence"] for each in record["classes"]}
