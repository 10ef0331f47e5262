"""Every format and every rule of `ovseg.images`, on non-square pictures."""

from __future__ import annotations

import io
import struct
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from ovseg.errors import ImageError, MissingDependencyError
from ovseg.images import Limits, float_to_uint8, in_batches, read_image


@pytest.fixture
def picture() -> np.ndarray:
    """Smooth, so that JPEG keeps it, and different in each corner."""
    y, x = np.mgrid[0:40, 0:64]
    return np.stack([x * 4, y * 6, 255 - x * 2 - y * 2], axis=-1).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("form", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("PPM", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG2000", {}, 0),
        ("WEBP", {"quality": 95}, 12),
        ("JPEG", {"quality": 95, "subsampling": 0}, 6),
        ("AVIF", {"quality": 95}, 12),
    ],
)
def test_each_format_gives_the_pixels(picture: np.ndarray, form: str, options: dict, tolerance: int) -> None:
    read = read_image(encode(picture, form, **options))
    assert read.dtype == np.uint8
    assert read.shape == (40, 64, 3)
    assert np.abs(read.astype(int) - picture).max() <= tolerance


def test_heic(picture: np.ndarray) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(picture)).save(stream, quality=-1)
    read = read_image(stream.getvalue())
    assert np.abs(read.astype(int) - picture).max() <= 24


def test_heic_without_the_plug_in_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MissingDependencyError, match="pip install pillow-heif"):
        read_image(b"\0\0\0\x18ftypheic" + bytes(40))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(form: str, orientation: int) -> None:
    upright = np.zeros((48, 80, 3), np.uint8)
    upright[:16, :24] = 255  # top left
    upright[:16, 56:] = (255, 0, 0)
    stored = {  # how a camera stores what should look upright
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[::-1],
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if form in ("JPEG", "WEBP", "AVIF") else {}
    if form == "TIFF":
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info[0x0112] = orientation
        options["tiffinfo"] = info
    else:
        options["exif"] = exif
    read = read_image(encode(np.ascontiguousarray(stored), form, **options))
    assert read.shape == upright.shape
    assert np.abs(read.astype(int) - upright).mean() < 6


def test_profile_is_converted_to_srgb(picture: np.ndarray) -> None:
    image = Image.fromarray(picture)
    # A profile whose red and blue primaries are swapped: converting must swap the channels back.
    raw = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    raw = bytearray(
        bytes(raw)
        .replace(b"sRGB built-in", b"swap built-in")
        .replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    )
    tags = {bytes(raw[i : i + 4]): i for i in range(132, 132 + 12 * struct.unpack(">I", raw[128:132])[0], 12)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    raw[red : red + 4], raw[blue : blue + 4] = b"bXYZ", b"rXYZ"
    read = read_image(encode(image, "PNG", icc_profile=bytes(raw)))
    assert np.abs(read.astype(int) - picture[:, :, ::-1]).max() <= 3


def test_broken_profile_is_ignored(picture: np.ndarray) -> None:
    assert (read_image(encode(picture, "PNG", icc_profile=b"no profile at all")) == picture).all()


def test_cmyk(picture: np.ndarray) -> None:
    read = read_image(encode(Image.fromarray(picture).convert("CMYK"), "JPEG", quality=95, subsampling=0))
    assert np.abs(read.astype(int) - picture).max() <= 8
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # of the wrong kind
    wrong = read_image(encode(Image.fromarray(picture).convert("CMYK"), "TIFF", icc_profile=profile))
    assert np.abs(wrong.astype(int) - picture).max() <= 1


def test_lab(picture: np.ndarray) -> None:
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    read = read_image(to_lab.apply(Image.fromarray(picture)))
    assert np.abs(read.astype(int) - picture).mean() < 6


def test_grey_and_one_bit(picture: np.ndarray) -> None:
    grey = picture[:, :, 0]
    assert (read_image(encode(grey, "PNG")) == grey[:, :, None]).all()
    bits = grey > 128
    assert (read_image(encode(Image.fromarray(bits), "PNG")) == bits[:, :, None] * 255).all()


@pytest.mark.parametrize("matte", [(255, 255, 255), (10, 200, 30)])
def test_alpha_is_composited(picture: np.ndarray, matte: tuple[int, int, int]) -> None:
    alpha = np.full((40, 64, 1), 255, np.uint8)
    alpha[:, :20] = 0
    alpha[:, 20:30] = 128
    read = read_image(encode(np.concatenate([picture, alpha], axis=-1), "PNG"), matte=matte)
    assert (read[:, :20] == matte).all()
    assert (read[:, 30:] == picture[:, 30:]).all()
    half = (picture[:, 20:30].astype(int) * 128 + np.array(matte) * 127) / 255
    assert np.abs(read[:, 20:30] - half).max() <= 1
    grey = np.concatenate([picture[:, :, :1], alpha], axis=-1)
    assert (read_image(encode(Image.fromarray(grey, "LA"), "PNG"), matte=matte)[:, :20] == matte).all()


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (24, 16), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(0, (0, 0, 12, 16))
    plain = read_image(encode(image, "PNG"))
    assert (plain[:, :12] == (255, 0, 0)).all()
    assert (plain[:, 12:] == (0, 0, 255)).all()
    for transparency in (0, b"\0\xff"):
        clear = read_image(encode(image, "PNG", transparency=transparency))
        assert (clear[:, :12] == 255).all()
        assert (clear[:, 12:] == (0, 0, 255)).all()


def test_transparent_colour_of_rgb(picture: np.ndarray) -> None:
    picture[:5] = (1, 2, 3)
    read = read_image(encode(picture, "PNG", transparency=(1, 2, 3)))
    assert (read[:5] == 255).all()
    assert (read[5:] == picture[5:]).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_the_high_byte(form: str) -> None:
    ramp = np.linspace(0, 65535, 40 * 64).reshape(40, 64).astype(np.uint16)
    read = read_image(encode(Image.fromarray(ramp), form))
    assert (read[:, :, 1] == ramp >> 8).all()
    dark = read_image(encode(Image.fromarray(ramp // 16), form))
    assert dark.max() == 15, "never stretched to the contents"


def test_sixteen_bit_colour_is_the_high_byte(picture: np.ndarray) -> None:
    wide = (picture.astype(np.uint16) * 256 + 77).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 40, 16, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert (read_image(png) == picture).all()


@pytest.mark.parametrize(("white", "limit"), [(1.0, 1.0), (255.0, 255.0), (65535.0, 65535.0)])
def test_float_tiff(picture: np.ndarray, white: float, limit: float) -> None:
    values = (picture[:, :, 0] / 252 * white).astype(np.float32)
    read = read_image(encode(Image.fromarray(values), "TIFF"))
    assert np.abs(read[:, :, 0].astype(float) - values / limit * 255).max() <= 0.51


def test_float_edges() -> None:
    assert float_to_uint8(np.array([[-1.0, 0.5, 1.0, 3.0, np.nan]])).tolist() == [[0, 128, 255, 255, 0]]
    with pytest.raises(ImageError, match="rescale"):
        float_to_uint8(np.array([[1e9]]))
    with pytest.raises(ImageError, match="rescale"):
        float_to_uint8(np.array([[np.inf]]))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_first_frame(form: str) -> None:
    red, blue = (Image.new("RGB", (24, 16), color) for color in ((255, 0, 0), (0, 0, 255)))
    read = read_image(encode(red, form, save_all=True, append_images=[blue, blue]))
    assert read.shape == (16, 24, 3)
    assert np.abs(read.astype(int) - (255, 0, 0)).max() <= 6


def test_arrays(picture: np.ndarray) -> None:
    assert (read_image(picture) == picture).all()
    assert read_image(picture) is not picture
    assert (read_image(picture[:, :, 0]) == picture[:, :, :1]).all()
    assert (read_image(picture[:, :, :1]) == picture[:, :, :1]).all()
    assert (read_image(picture.astype(np.uint16) * 256) == picture).all()
    assert (read_image(picture / 255.0) == picture).all()
    assert (read_image(picture > 100) == (picture > 100) * 255).all()
    assert (read_image(picture[::2, ::-1]) == picture[::2, ::-1]).all()
    with pytest.raises(ImageError, match="channels last"):
        read_image(picture.transpose(2, 0, 1))
    with pytest.raises(ImageError, match="int64"):
        read_image(picture.astype(np.int64))


def test_pil_image_is_not_changed(picture: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encode(picture, "JPEG", exif=exif)))
    assert read_image(image).shape == (64, 40, 3)
    assert read_image(image).shape == (64, 40, 3)
    assert image.size == (64, 40)


def test_paths_and_their_errors(picture: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "-наш файл 猫 🙂.weird"
    path.write_bytes(encode(picture, "PNG"))
    assert (read_image(path) == picture).all()
    assert (read_image(str(path)) == picture).all()
    with pytest.raises(ImageError, match=r"gone\.png: No such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"This is a text file, whatever its name says.", "not an image"),
        (b"\xff\xd8\xff\xe0", "damaged JPEG"),
        (b"\x89PNG\r\n\x1a\n", "damaged PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not an image"),
    ],
)
def test_what_is_no_image(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason):
        read_image(path)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "GIF", "PPM", "JPEG2000"])
def test_truncated_files_are_refused(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 80, 3)).astype(np.uint8)
    content = encode(noise, form)
    with pytest.raises(ImageError):
        read_image(content[: len(content) // 2])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "AVIF", "GIF"])
def test_random_damage_gives_an_image_or_an_image_error(picture: np.ndarray, form: str) -> None:
    rng = np.random.default_rng(1)
    content = encode(picture, form)
    refused = 0
    for _ in range(40):
        damaged = bytearray(content)
        for position in rng.integers(0, len(damaged), rng.integers(1, 12)):
            damaged[position] = rng.integers(0, 256)
        try:
            assert read_image(bytes(damaged)).ndim == 3
        except ImageError:
            refused += 1
    assert refused > 0 or form == "BMP"


def test_decompression_bomb_is_refused_before_decoding(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    png += struct.pack(">I", zlib.crc32(b"IHDR" + header)) + struct.pack(">I", 0) + b"IDAT"
    with pytest.raises(ImageError, match="2,500,000,000 pixels"):
        read_image(png + bytes(4))


def test_limits(picture: np.ndarray) -> None:
    with pytest.raises(ImageError, match="at least 8 pixels"):
        read_image(encode(picture[:1, :1], "PNG"))
    long = np.zeros((10, 30_000, 3), np.uint8)
    with pytest.raises(ImageError, match="times the other"):
        read_image(encode(long, "PNG"))
    assert read_image(long).shape == long.shape  # an array is in memory already: nothing is refused
    assert read_image(encode(long[:, :900], "PNG")).shape == (10, 900, 3)
    with pytest.raises(ImageError, match="limit of 2,000"):
        read_image(picture, limits=Limits(max_pixels=2000))
    loose = Limits(min_side_px=1, max_aspect=1e9)
    assert read_image(picture[:1, :1], limits=loose).shape == (1, 1, 3)
    assert read_image(encode(picture[:3], "PNG"), limits=loose).shape == (3, 64, 3)


def test_larger_than_pillows_limit_can_be_allowed(
    picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert (read_image(encode(picture, "PNG")) == picture).all()
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_silent_and_safe_in_threads(picture: np.ndarray, recwarn: pytest.WarningsRecorder) -> None:
    bad_exif = encode(picture, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(20))
    contents = [bad_exif, encode(picture, "PNG"), encode(picture, "GIF"), b"nothing"]
    shapes: list[object] = []

    def work() -> None:
        for content in contents * 5:
            try:
                shapes.append(read_image(content).shape)
            except ImageError as error:
                shapes.append(type(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shapes.count((40, 64, 3)) == 60
    assert shapes.count(ImageError) == 20
    assert not recwarn.list


def test_warnings_of_others_stay() -> None:
    read_image(np.zeros((16, 24, 3), np.uint8))
    with pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", stacklevel=1)


def test_text_chunk_bomb_is_an_image_error(picture: np.ndarray) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 20_000_000, zip=True)
    with pytest.raises(ImageError, match="damaged PNG"):
        read_image(encode(picture, "PNG", pnginfo=info))


def test_batches_keep_their_order_and_hold_one_size() -> None:
    pictures = [np.full((8 + 2 * (k % 3 == 1), 10, 3), k, np.uint8) for k in range(7)]
    asked: list[list[int]] = []

    def numbers(alike: list[np.ndarray]) -> list[int]:
        assert len({image.shape for image in alike}) == 1
        asked.append([int(image[0, 0, 0]) for image in alike])
        return asked[-1]

    assert list(in_batches(iter(pictures), 4, numbers)) == list(range(7))
    assert asked == [[0, 2, 3], [1], [4], [5, 6]]
    lazy = in_batches([pictures[0], b"no image"], 1, numbers)
    assert next(lazy) == 0
    with pytest.raises(ImageError):
        next(lazy)
