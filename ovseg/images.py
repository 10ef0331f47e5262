"""The only reader of image files: whatever comes in, `(H, W, 3)` uint8 sRGB goes out.

One rule each (`docs/infer.md` has them as a table):

- *Orientation*: the EXIF (or XMP) tag is applied once; what is returned is upright.
- *Colour*: an embedded ICC profile is converted to sRGB (perceptual intent). A profile that is broken or
  meant for another kind of image is ignored. CMYK without a profile is `255 * (1 - ink) * (1 - black)`.
- *Grey* is repeated over the three channels; *1-bit* is black and white.
- *Alpha* (also a transparent palette entry or colour) is composited over `matte`, white by default.
- *16 bit*: the high byte, so 0..65535 becomes 0..255, never stretched to the contents. 32-bit integers are
  read as 16 bit and clipped.
- *Float*: white is the smallest of 1, 255 and 65535 that the values fit, see `float_to_uint8`.
- *Several frames or pages*: the first.
- *Refused*, as `ImageError` with the reason: truncated or damaged files, more than `max_pixels`, a side
  shorter than `min_side_px`, one side more than `max_aspect` times the other.

Reading is safe from many threads at once: nothing of Pillow's global state is changed, and its limit for
large images is replaced by the one here.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import (  # noqa: F401  (the plug-ins register themselves)
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ovseg.errors import ImageError, MissingDependencyError

if TYPE_CHECKING:
    BinaryStream = IO[bytes]
else:  # run-time type checks cannot see through `IO`
    BinaryStream = io.BufferedIOBase

Result = TypeVar("Result")
Source = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

#: Pillow's formats that are tried, in this order, by the first bytes of the file and not by its name.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")

#: Suffixes by which the files of a folder are recognised, lower case.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
    | {".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm"}
)

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_PILLOW = r"PIL\."

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors go to stderr


@dataclass(frozen=True)
class Limits:
    """Which images are refused before their pixels are decoded.

    Attributes:
        max_pixels: most pixels, against decompression bombs; the default is Pillow's own threshold.
        min_side_px: least height and width.
        max_aspect: most times that the longer side may have the shorter one.
    """

    max_pixels: int = 89_478_485
    min_side_px: int = 8
    max_aspect: float = 100.0

    def check(self, height: int, width: int) -> None:
        """Raise ImageError where an image of that size is refused."""
        short, long = sorted((height, width))
        what = f"image is {height}x{width} (HxW)"
        if short < self.min_side_px:
            raise ImageError(f"{what}: the shorter side must be at least {self.min_side_px} pixels")
        if height * width > self.max_pixels:
            raise ImageError(
                f"{what}, {height * width:,} pixels: more than the limit of {self.max_pixels:,}; raise "
                f"max_pixels (--max-pixels) if you trust the file"
            )
        if long > self.max_aspect * short:
            raise ImageError(
                f"{what}: one side is {long / short:.0f} times the other, at most {self.max_aspect:g} is "
                f"allowed; cut it into pieces"
            )


NO_LIMITS = Limits(max_pixels=sys.maxsize, min_side_px=1, max_aspect=float("inf"))


def read_image(
    source: Source, *, limits: Limits | None = None, matte: Sequence[int] = (255, 255, 255)
) -> UInt8[np.ndarray, "H W 3"]:
    """Any image as upright sRGB, by the rules at the top of this module.

    Args:
        source: a path, the bytes of a file, a PIL image, or an array: `(H, W)` or `(H, W, 1 to 4)` of
            bool, uint8, uint16 or float (grey, grey + alpha, RGB, RGBA).
        limits: what is refused, `Limits()` by default; of arrays, which are in memory already, nothing is.
        matte: the RGB colour behind transparent pixels.

    Raises:
        ImageError: the image cannot be read; a file's message starts with its path.
        MissingDependencyError: the format needs a package that is not installed.
    """
    _silence_pillow()
    if isinstance(source, np.ndarray):
        return _read_array(source, limits or NO_LIMITS, tuple(matte))
    limits = limits or Limits()
    if isinstance(source, Image.Image):
        return _decode(source, limits, tuple(matte))
    if isinstance(source, bytes):
        return _read_stream(io.BytesIO(source), limits, tuple(matte))
    try:
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise ImageError("not a regular file")
        with open(source, "rb") as stream:
            return _read_stream(stream, limits, tuple(matte))
    except (ImageError, MissingDependencyError) as error:
        raise type(error)(f"{os.fspath(source)}: {error}") from error
    except OSError as error:
        raise ImageError(f"{os.fspath(source)}: {error.strerror or error}") from error


def in_batches(
    images: Iterable[Any], size: int, ask: Callable[[list[np.ndarray]], Iterable[Result]]
) -> Iterator[Result]:
    """Results, lazily and in order, of a question to images of one size.

    Args:
        images: anything that `read_image` takes; sizes may differ.
        size: how many are taken at a time.
        ask: what is asked of those that have one size; gives a result for each.

    Raises:
        ImageError: an image cannot be read; raised when its turn comes.
    """
    rest = iter(images)
    while batch := [read_image(image) for image in islice(rest, size)]:
        by_size: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(batch):
            by_size.setdefault(image.shape[:2], []).append(index)
        results: dict[int, Result] = {}
        for alike in by_size.values():
            results.update(zip(alike, ask([batch[index] for index in alike]), strict=True))
        yield from (results[index] for index in range(len(batch)))


def float_to_uint8(values: np.ndarray) -> np.ndarray:
    """Float pixels as 8 bit.

    White is 1 where no value is above 16 (so highlights of a few times white are clipped), else 255, else
    65535, each with a tolerance of 10 %; larger values are refused. Negative values are black, and so is
    what is not a number.
    """
    values = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=np.inf, neginf=0.0)
    largest = float(values.max(initial=0.0))
    white = 1.0 if largest <= 16 else 255.0 if largest <= 280 else 65535.0
    if largest > 1.1 * white and white > 1:
        raise ImageError(
            f"float pixels up to {largest:g}: expected [0, 1], [0, 255] or [0, 65535]; rescale them"
        )
    return (values / white * 255.0).clip(0, 255).round().astype(np.uint8)


def _silence_pillow() -> None:
    """Ignore warnings raised inside Pillow. `catch_warnings` would not do: it is not thread-safe."""
    first = warnings.filters[0] if warnings.filters else None
    if first is None or getattr(first[3], "pattern", None) != _PILLOW:
        warnings.filterwarnings("ignore", module=_PILLOW)


def _read_stream(stream: BinaryStream, limits: Limits, matte: tuple[int, ...]) -> np.ndarray:
    with _open(stream) as image:
        return _decode(image, limits, matte)


def _open(stream: BinaryStream) -> Image.Image:
    """The image, pixels not yet decoded. Bypasses `Image.open`, whose size limit is a global variable."""
    prefix = stream.read(32)
    if not prefix:
        raise ImageError("the file is empty (0 bytes)")
    reason = ""
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        accepted = accept(prefix) if accept else True
        if isinstance(accepted, str):  # Pillow was built without this format
            raise MissingDependencyError(f"{accepted.rstrip('.')}: reinstall Pillow from its wheel")
        if not accepted:
            continue
        try:
            stream.seek(0)
            return factory(stream, "")
        except Exception as error:
            reason = f"damaged {name} file: {_reason(error)}"
    if prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS:
        stream.seek(0)
        return _open_heif(stream)
    raise ImageError(
        reason
        or f"not an image: the file starts with {prefix[:12]!r}, like none of {', '.join(FORMATS)}, HEIF"
    )


def _open_heif(stream: BinaryStream) -> Image.Image:
    try:
        import pillow_heif
    except ImportError as error:
        raise MissingDependencyError("HEIC needs a plug-in: pip install pillow-heif") from error
    try:
        return pillow_heif.HeifImageFile(stream)
    except Exception as error:
        raise ImageError(f"damaged HEIF file: {_reason(error)}") from error


def _decode(image: Image.Image, limits: Limits, matte: tuple[int, ...]) -> np.ndarray:
    limits.check(image.height, image.width)
    try:
        image.load()
        turn = _TURNS.get(_orientation(image))  # after loading: TIFF is turned by Pillow itself
        rgb = _to_rgb(image, matte)
        return np.array(rgb.transpose(turn) if turn is not None else rgb)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every built-in exception on damaged files
        raise ImageError(f"damaged {image.format or 'image'} file: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata does not spoil the pixels
        return 1


def _to_rgb(image: Image.Image, matte: tuple[int, ...]) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        image = Image.fromarray((wide.clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(float_to_uint8(np.asarray(image)))
    alpha = None
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or (
        "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    ):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    elif image.mode == "P":
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    image = _to_srgb(image, profile)
    if alpha is not None and alpha.getextrema() != (255, 255):
        behind = Image.new("RGB", image.size, matte)
        behind.paste(image, mask=alpha)
        return behind
    return image


def _to_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """Through the embedded profile if it fits, else by Pillow's plain conversion."""
    try:
        if image.mode == "LAB":
            return _through(image, ImageCms.createProfile("LAB"))
        if profile:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = embedded.profile.xcolor_space.strip()
            if space == "RGB" and image.mode != "CMYK":
                image = image.convert("RGB")
                if "srgb" in (embedded.profile.profile_description or "").lower():
                    return image
            if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) == image.mode:
                return _through(image, embedded)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        pass  # a broken profile: the pixels are still good
    return image.convert("RGB")


def _through(image: Image.Image, profile: Any) -> Image.Image:
    """From a profile's colours to sRGB."""
    return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), image.mode, "RGB").apply(image)


def _read_array(array: np.ndarray, limits: Limits, matte: tuple[int, ...]) -> np.ndarray:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        fix = "; move the channels last" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise ImageError(f"array has shape {array.shape}: expected (H, W) or (H, W, 1 to 4){fix}")
    limits.check(array.shape[0], array.shape[1])
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        array = float_to_uint8(array)
    elif array.dtype != np.uint8:
        raise ImageError(f"array is {array.dtype}: expected bool, uint8, uint16 or float")
    if array.ndim == 3 and array.shape[2] == 3:
        return np.array(array)  # a copy: the caller's buffer may be reused
    flat = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return np.array(_to_rgb(Image.fromarray(np.ascontiguousarray(flat)), matte))
