"""A method out of an ONNX file: images and encoded words in, classes of pixels out. No torch anywhere.

numpy, onnxruntime and Pillow do all of it. What the graph does not do is done here as in `ovseg.inferencer`:
resizing, windows, softmax, upsampling, thresholds. There is no refinement (PAMR), area filter or other task.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ovseg.errors import CheckpointError, MissingDependencyError, ShapeError, VocabularyError
from ovseg.export.described import Described
from ovseg.export.mosaic import Mosaic, resize_image, resized_hw
from ovseg.export.word_table import WordTable
from ovseg.images import read_image
from ovseg.results import Segmentation, void_label

#: Pixels times maps held at once.
TILE_ELEMENTS = 2**22


@dataclass(frozen=True)
class Scores:
    """What the graph says of one image.

    Attributes:
        cosine: of all windows as one mosaic.
        objectness: logits, where the method has them.
        rows, cols: the matrices from the mosaic to the picture.
    """

    cosine: Float[np.ndarray, "Q h w"]
    objectness: Float[np.ndarray, "h w"] | None
    rows: Float[np.ndarray, "H h"]
    cols: Float[np.ndarray, "W w"]


class OnnxInferencer:
    """An exported method, ready for images and words.

    Example:
        >>> segment = OnnxInferencer("sclip.onnx")
        >>> for result in segment(["photo.jpg"], "words.npz"):
        ...     print(result.shares())

    Args:
        model: a file that tools/export.py has written.
        threshold: pixels whose best class is less probable become background, if there is a background
            class, else void. A class's own threshold comes first.
        providers: of onnxruntime, such as "CUDAExecutionProvider", the first that is there.
        threads: that compute; None leaves it to onnxruntime.
        max_batch: windows at once; None as the method has it.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        CheckpointError: no such file, or none of ours.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        threshold: float = 0.0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int | None = None,
        max_batch: int | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError(
                "an ONNX file needs onnxruntime: pip install 'ovseg[onnx]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session: Any = onnxruntime.InferenceSession(
                os.fspath(model), options, providers=list(providers)
            )
        except Exception as error:  # onnxruntime has an exception for each of its error codes
            raise CheckpointError(f"{model} cannot be run by onnxruntime: {error}") from error
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.described = Described.from_metadata(metadata, str(model))
        self.threshold = threshold
        self.max_batch = max_batch or self.described.windows["max_batch"]

    def __call__(
        self, images: Iterable[Any], words: WordTable | str | os.PathLike[str]
    ) -> Iterator[Segmentation]:
        """Results, lazily and in order.

        Args:
            images: anything that `ovseg.images.read_image` takes.
            words: a table, or the `.npz` file of one.

        Raises:
            VocabularyError: the words are of another model. Raised at the call.
            ImageError: an image cannot be read; raised when its turn comes.
            ShapeError: the graph takes one size of window, and this image has others.
        """
        table = words if isinstance(words, WordTable) else WordTable.load(words)
        own = self.described
        if table.weights_sha256 != own.weights_sha256 or table.embeddings.shape[1] != own.dim:
            raise VocabularyError(
                f"these words were encoded by '{table.encoder}' and the images by '{own.encoder}': write "
                f"them with tools/export.py --encoder {own.encoder} --words ... -o words.npz"
            )
        return (self.segment(self.score(image, table), table) for image in map(read_image, images))

    def score(self, image: np.ndarray, words: WordTable) -> Scores:
        """An image `(H, W, 3)` of bytes through the graph, window by window."""
        own, output_hw = self.described, (image.shape[0], image.shape[1])
        if own.short_side is not None:
            image = resize_image(image, resized_hw(output_hw, own.short_side))
        mosaic = Mosaic.of((image.shape[0], image.shape[1]), own.windows, own.patch_hw)
        pieces = mosaic.cut(image.astype(np.float32) / 255, own.mean)
        if own.size_hw not in (None, pieces.shape[2:]):
            raise ShapeError(
                f"the graph was exported for windows of {own.size_hw} pixels (HxW) and this image has "
                f"{pieces.shape[2:]}: export without --size, or with a crop of that size"
            )
        names = ["cosine", "objectness"] if own.objectness else ["cosine"]
        parts = [
            self.session.run(
                names, {"image": pieces[first : first + self.max_batch], "text": words.embeddings}
            )
            for first in range(0, len(pieces), self.max_batch)
        ]
        cosine, *objectness = (np.concatenate(each) for each in zip(*parts, strict=True))
        rows, cols = mosaic.resampling(cosine.shape[2:], output_hw)
        where = mosaic.join(objectness[0])[0] if objectness else None
        return Scores(mosaic.join(cosine), where, rows, cols)

    def segment(self, scores: Scores, words: WordTable) -> Segmentation:
        """Scores to a class for every pixel."""
        reader = _Reader(self.described, words)
        grid = self.described.temperature * scores.cosine
        patch = self.described.softmax_at == "patch"
        if patch:
            grid = reader.grid_probabilities(grid, scores.objectness)
        height, width = len(scores.rows), len(scores.cols)
        labels = np.empty((height, width), np.int64)
        confidence = np.empty((height, width), np.float32)
        across = max(min(width, TILE_ELEMENTS // (len(grid) * 64)), 1)
        down = max(TILE_ELEMENTS // (len(grid) * across), 1)
        for left in range(0, width, across):
            wide = grid @ scores.cols[left : left + across].T
            for top in range(0, height, down):
                piece = np.einsum("yh,qhx->qyx", scores.rows[top : top + down], wide, optimize=True)
                best = piece if patch else reader.class_probabilities(piece)
                where = np.s_[top : top + down, left : left + across]
                labels[where], confidence[where] = best.argmax(0), best.max(0).clip(0, None)
        void = void_label(len(words.names))
        fallback = min(words.background) if words.background else void
        limits = np.where(np.isnan(words.thresholds), self.threshold, words.thresholds)
        labels[confidence < limits[labels]] = fallback
        dtype = np.uint8 if void == 255 else np.uint16
        return Segmentation(labels.astype(dtype), words.names, confidence, words.background, void=void)


class _Reader:
    """Logits of queries to probabilities of classes, as `ovseg.score_map` has them."""

    def __init__(self, described: Described, words: WordTable) -> None:
        self.described, self.words = described, words
        self.order: Int[np.ndarray, " Q"] = np.argsort(words.class_of_query, kind="stable")
        self.starts = np.searchsorted(words.class_of_query[self.order], np.arange(len(words.names)))

    def per_class(self, values: np.ndarray) -> np.ndarray:
        """The best query of each class."""
        return np.maximum.reduceat(values[self.order], self.starts, axis=0)

    def class_probabilities(self, logits: np.ndarray) -> np.ndarray:
        """By a softmax over queries, or over classes."""
        if self.described.softmax_over == "class":
            return _softmax(self.per_class(logits))
        return self.per_class(_softmax(logits))

    def grid_probabilities(self, logits: np.ndarray, objectness: np.ndarray | None) -> np.ndarray:
        """On the grid; where nothing is and no class is sure, it is background."""
        found = self.class_probabilities(logits)
        if objectness is not None and self.words.background:
            nothing = (found.max(0) < self.described.sure) & (objectness <= 0)
            found[min(self.words.background)][nothing] = 1
        return found


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)
