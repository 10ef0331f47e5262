"""Video files: frames in, frames out, by PyAV. Sound is left behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ovseg.errors import ConfigError, ImageError, MissingDependencyError

#: Encoders that are tried, the first that PyAV was built with is taken; and their options.
ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"crf": "20", "preset": "medium"},
    "libopenh264": {"b": "6M"},
    "mpeg4": {"qscale": "3", "b": "8M"},
}


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself.

    Attributes:
        image_hw: pixels of a frame, upright.
        rate: frames a second.
        frames: how many, as far as the file says; 0 where it does not.
        audio: whether there is sound.
    """

    image_hw: tuple[int, int]
    rate: Fraction
    frames: int
    audio: bool


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        index: its number in the file, from 0.
        seconds: when it is shown.
        image: RGB, upright.
    """

    index: int
    seconds: float
    image: UInt8[np.ndarray, "H W 3"]


def read_info(path: Path) -> VideoInfo:
    """What a file holds.

    Raises:
        ImageError: not a video, or damaged.
        MissingDependencyError: PyAV is not installed.
    """
    first = next(read_frames(path), None)
    if first is None:
        raise ImageError(f"{path}: the video has no frame that can be decoded")
    with _open(path) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        frames = stream.frames
        if not frames and container.duration:
            frames = round(container.duration / 1_000_000 * rate)
        shape = first.image.shape
        return VideoInfo((shape[0], shape[1]), Fraction(rate), frames, bool(container.streams.audio))


def read_frames(path: Path, stride: int = 1) -> Iterator[Frame]:
    """Every so many frames, in order.

    A damaged end ends the video; a file of which nothing can be decoded is an error.

    Args:
        path: of the file.
        stride: 1 for every frame, 5 for every fifth.

    Raises:
        ConfigError: a stride below 1.
        ImageError: not a video, or damaged before its first frame.
        MissingDependencyError: PyAV is not installed.
    """
    if stride < 1:
        raise ConfigError(f"stride is {stride}: expected 1 or more, as 5 for every fifth frame")
    import_av()
    return _frames(path, stride)


def _frames(path: Path, stride: int) -> Iterator[Frame]:
    errors, given = import_av().FFmpegError, False
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            for index, frame in enumerate(container.decode(stream)):
                if index % stride == 0:
                    turns = round(frame.rotation / 90) % 4
                    image = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
                    given = True
                    yield Frame(index, float(frame.time or 0.0), image)
        except errors as error:
            if not given:
                raise ImageError(f"{path}: damaged video: {error}") from error


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    av = import_av()
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise ImageError(f"{path}: not a video that can be read: {error}") from error
    with container:
        if not container.streams.video:
            raise ImageError(f"{path}: the file has no pictures, only sound or text")
        yield container


class VideoWriter:
    """An MP4 file of frames of one size. Use it in a `with` statement.

    Args:
        path: of the file.
        rate: frames a second.

    Attributes:
        encoder: which one is taken, see `ENCODERS`.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        av = import_av()
        self.encoder = next((name for name in ENCODERS if name in av.codecs_available), None)
        if self.encoder is None:
            raise MissingDependencyError(
                f"PyAV was built without an encoder of {', '.join(ENCODERS)}: pip install 'ovseg[video]'"
            )
        self.path = path
        self.rate = rate.limit_denominator(65535)  # as MPEG-4 has it
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._container = import_av().open(str(self.path), "w", format="mp4")
        return self

    def __exit__(self, *reason: object) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def write(self, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """A frame. An odd side loses its last pixel: the colour format has half the resolution."""
        height, width = (side - side % 2 for side in image.shape[:2])
        if self._stream is None:
            self._stream = self._container.add_stream(
                self.encoder, rate=self.rate, options=ENCODERS[self.encoder or ""]
            )
            self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        if (self._stream.height, self._stream.width) != (height, width):
            raise ImageError(
                f"a frame of {height}x{width} (HxW) in a video of {self._stream.height}x{self._stream.width}"
            )
        frame = import_av().VideoFrame.from_ndarray(
            np.ascontiguousarray(image[:height, :width]), format="rgb24"
        )
        self._container.mux(self._stream.encode(frame))


def import_av() -> Any:
    """PyAV.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError("videos need PyAV: pip install 'ovseg[video]'") from error
    return av
