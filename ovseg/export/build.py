"""From an inferencer to files, and how well they agree with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ovseg
from ovseg.errors import ConfigError, unknown_name
from ovseg.export.described import Described
from ovseg.export.formats import FORMATS, Run, runner, tracing, write
from ovseg.export.image_side import ImageSide, check_exportable
from ovseg.export.onnx_inferencer import OnnxInferencer
from ovseg.export.quantize import quantize_int8
from ovseg.export.word_table import WordTable

#: Largest difference of a cosine or feature between torch and a float32 file.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: of the file.
        described: what it says of itself.
        differences: largest difference from torch by size of the input `(batch, height, width)`.
    """

    path: Path
    described: Described
    differences: dict[tuple[int, int, int], float]

    @property
    def agrees(self) -> bool:
        """Whether a float32 file computes what torch computes; an int8 one is not asked."""
        return self.described.quantized is not None or max(self.differences.values()) <= TOLERANCE


def describe(inferencer: Any, side: ImageSide, size_hw: tuple[int, int] | None = None) -> Described:
    """What a file of this inferencer says of itself."""
    scorer, about = side.scorer, inferencer.image_side()
    encoder = scorer.encoder
    return Described(
        method=about["method"],
        options=about["options"],
        encoder=about["encoder"],
        weights_sha256=about["weights_sha256"],
        parts=about["parts"],
        dim=inferencer.bank("anything", ["{}"])[1].embeddings.shape[1],
        patch_hw=encoder.patch_hw,
        mean=tuple(encoder.mean.flatten().tolist()),
        std=tuple(encoder.std.flatten().tolist()),
        short_side=scorer.short_side,
        windows=asdict(scorer.windows),
        temperature=scorer.temperature,
        softmax_at=scorer.softmax_at,
        softmax_over=scorer.softmax_over,
        sure=scorer.sure,
        size_hw=size_hw,
        objectness=side.has_objectness,
        left_out=tuple(inferencer.refine),
        version=ovseg.__version__,
    )


def export(
    inferencer: Any,
    path: Path,
    format: str = "onnx",
    *,
    size_hw: tuple[int, int] | None = None,
    int8: bool = False,
) -> Exported:
    """The image side of an inferencer as a file, compared with torch at several sizes.

    Args:
        inferencer: an `Inferencer` of a published method on the CPU, float32. Its refinement is taken off,
            as the file has none.
        path: of the file.
        format: of `FORMATS`.
        size_hw: fixed height and width of the windows; None: any.
        int8: quantise the weights, of an ONNX file.

    Raises:
        ConfigError: the method cannot be exported; the message has the reason.
        MissingDependencyError: packages for ONNX are missing.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if int8 and format != "onnx":
        raise ConfigError(f"int8 is for --format onnx, not {format}")
    check_exportable(inferencer.method)
    if inferencer.dtype != "float32" or inferencer.device.type != "cpu":
        raise ConfigError("export from a CPU and in float32; the runtime chooses its own precision")
    side = ImageSide(inferencer.scorer).eval()
    described = describe(inferencer, side, size_hw)
    if size_hw is not None and (size_hw[0] < described.patch_hw[0] or size_hw[1] < described.patch_hw[1]):
        raise ConfigError(f"--size {size_hw[0]} {size_hw[1]} is less than a patch, {described.patch_hw}")
    inferencer.scorer.refine = nn.ModuleList()
    path.parent.mkdir(parents=True, exist_ok=True)
    write(side, path, format, described, size_hw)
    if int8:
        described = quantize_int8(path, path, described)
    return Exported(path, described, parity(side, runner(path, format, side.output_names), described))


def parity(side: ImageSide, run: Run, described: Described) -> dict[tuple[int, int, int], float]:
    """Largest difference between torch and a file, by size: the trained one, others, not of whole patches."""
    tower = side.scorer.encoder.tower
    trained = tuple(cells * patch for cells, patch in zip(tower.trained_hw, tower.patch_hw, strict=True))
    high, wide = tower.patch_hw
    sizes = [(1, *trained), (2, 8 * high + 5, 11 * wide), (3, 10 * high, 6 * wide + 7)]
    if described.size_hw is not None:
        sizes = [(batch, *described.size_hw) for batch in (1, 3)]
    random = np.random.default_rng(0)
    found = {}
    for queries, (batch, height, width) in enumerate(sizes, start=2):
        image = random.random((batch, 3, height, width), dtype=np.float32)
        text = random.normal(size=(queries, described.dim)).astype(np.float32)
        text /= np.linalg.norm(text, axis=1, keepdims=True)
        with tracing():
            wanted = side(torch.from_numpy(image), torch.from_numpy(text))
        given = run(image, text).values()
        found[batch, height, width] = max(
            float(np.abs(got - want.numpy()).max()) for got, want in zip(given, wanted, strict=True)
        )
    return found


def encode_words(inferencer: Any, classes: Any, templates: str | Sequence[str] = "imagenet80") -> WordTable:
    """Words as an exported model of this inferencer is asked them."""
    about = inferencer.image_side()
    bank = inferencer.bank(classes, templates)[1]
    return WordTable.of(bank, encoder=about["encoder"], weights_sha256=about["weights_sha256"])


def label_agreement(
    inferencer: Any,
    exported: OnnxInferencer,
    images: Iterable[Any],
    classes: Any,
    templates: str | Sequence[str] = "imagenet80",
) -> float:
    """Share of all pixels of some images to which an ONNX file and torch give the same label."""
    words = encode_words(inferencer, classes, templates)
    same = total = 0
    for image in images:
        (theirs,) = inferencer([image], classes, templates=templates)
        (ours,) = exported([image], words)
        same += int((ours.labels == theirs.labels).sum())
        total += ours.labels.size
    if not total:
        raise ConfigError("there are no images to compare labels on")
    return same / total
