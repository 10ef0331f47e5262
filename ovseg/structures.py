"""The nouns that every part of ovseg speaks.

Axis letters, everywhere: B images, K classes, Q queries (prompts), C channels, D the shared image-text
dimension, G attention heads or groups, N tokens, P prefix tokens (class, registers), d channels of a
head, h w grid cells, H W pixels. Height comes before width, always.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovseg.errors import ShapeError, VocabularyError

#: Pixels times queries held at once while labels are computed, by device: on a CPU a piece stays in the cache.
TILE_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}


@dataclass(frozen=True)
class PatchFeatures:
    """What an encoder knows about an image, a vector per patch.

    Attributes:
        grid: patch tokens `(B, C, h, w)`.
        prefix: class and register tokens `(B, P, C)`; P may be 0.
        image_hw: pixels `(H, W)` of the encoder's input.
    """

    grid: Float[Tensor, "B C h w"]
    prefix: Float[Tensor, "B P C"]
    image_hw: tuple[int, int]


@dataclass(frozen=True)
class SoftmaxTerm:
    """One attention matrix, not yet multiplied out: `softmax(query @ key.T / sqrt(d) + bias)`.

    Attributes:
        query, key: `(B, G, N, d)`.
        bias: `(N, N)`, added to the logits, or None.
    """

    query: Float[Tensor, "B G N d"]
    key: Float[Tensor, "B G N d"]
    bias: Float[Tensor, "N N"] | None = None

    @property
    def weights(self) -> Float[Tensor, "B G N N"]:
        """The matrix, float32; rows sum to 1."""
        logits = self.query.float() @ self.key.float().mT * self.query.shape[-1] ** -0.5
        return (logits if self.bias is None else logits + self.bias.float()).softmax(dim=-1)

    def mix(self, values: Float[Tensor, "B G N d"]) -> Float[Tensor, "B G N d"]:
        """`weights @ values` by fused attention, which never holds the matrix."""
        bias = None if self.bias is None else self.bias.to(values.dtype)
        return F.scaled_dot_product_attention(self.query, self.key, values, attn_mask=bias)


@dataclass(frozen=True)
class Affinity:
    """Which tokens belong together: row `i` weighs the tokens that make up the new token `i`.

    Either a matrix, or a sum of softmax terms that stays unmultiplied so that attention kernels can fuse
    it. In its place `None` means identity, and nothing is built at all.

    Attributes:
        matrix: `(B, G, N, N)`, non-negative; G is the number of heads, or 1 for all heads alike.
        terms: softmax terms to add up; given instead of `matrix`. Rows sum to the number of terms.
        hw: the patch grid; `N = num_prefix + h * w`.
        num_prefix: how many of the N tokens are prefix tokens (they come first).
    """

    hw: tuple[int, int]
    num_prefix: int
    matrix: Float[Tensor, "B G N N"] | None = None
    terms: tuple[SoftmaxTerm, ...] = ()

    def __post_init__(self) -> None:
        if (self.matrix is None) == (not self.terms):
            raise ShapeError("an Affinity takes either a matrix or terms, exactly one of the two")

    @property
    def weights(self) -> Float[Tensor, "B G N N"]:
        """The whole matrix, float32."""
        if self.matrix is not None:
            return self.matrix.float()
        return torch.stack([term.weights for term in self.terms]).sum(dim=0)

    def mix(self, values: Float[Tensor, "B H N d"]) -> Float[Tensor, "B H N d"]:
        """`weights @ values`, the same for every head where G is 1."""
        if self.matrix is not None:
            return self.matrix.to(values.dtype) @ values
        mixed = self.terms[0].mix(values)
        for term in self.terms[1:]:
            mixed = mixed + term.mix(values)
        return mixed


@dataclass(frozen=True)
class OpenBlock:
    """The last transformer block of an encoder, opened between its projections and its attention.

    Attributes:
        q, k, v: projections of the normalised block input `(B, G, N, d)`.
        residual: the block input `(B, N, C)`.
        hw: the patch grid.
        num_prefix: prefix tokens among the N, which come first.
        image_hw: pixels of the encoder's input.
        taps: outputs `(B, N, C)` of earlier blocks that were asked for, by block index.
    """

    q: Float[Tensor, "B G N d"]
    k: Float[Tensor, "B G N d"]
    v: Float[Tensor, "B G N d"]
    residual: Float[Tensor, "B N C"]
    hw: tuple[int, int]
    num_prefix: int
    image_hw: tuple[int, int]
    taps: Mapping[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TextBank:
    """The words, encoded.

    Attributes:
        embeddings: `(Q, D)`, unit rows, one per query.
        class_of_query: `(Q,)`, the class that each query speaks for; every class has a query.
        names: the K class names.
        background: which classes are background (any number, also none).
        thresholds: least probability per class, or None for the head's own.
    """

    embeddings: Float[Tensor, "Q D"]
    class_of_query: Int[Tensor, " Q"]
    names: tuple[str, ...]
    background: frozenset[int] = frozenset()
    thresholds: tuple[float | None, ...] | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise VocabularyError("a text bank needs at least one class, got none")
        spoken_for = set(self.class_of_query.tolist())
        if spoken_for != set(range(len(self.names))):
            raise VocabularyError(
                f"class_of_query must name each of the {len(self.names)} classes 0..{len(self.names) - 1} "
                f"at least once and nothing else, got {sorted(spoken_for)[:20]}"
            )

    @property
    def one_query_per_class(self) -> bool:
        """Whether query `i` is class `i`, so that nothing needs merging."""
        return self.class_of_query.tolist() == list(range(len(self.names)))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TextBank:
        """A copy on another device, with embeddings in another dtype."""
        return replace(
            self,
            embeddings=self.embeddings.to(device=device, dtype=dtype),
            class_of_query=self.class_of_query.to(device),
        )


@dataclass(frozen=True)
class Resampling:
    """How a grid of cells becomes a picture: `rows @ grid @ cols.T`.

    Bilinear upsampling, cropping a padded border, averaging overlapping windows and a second resize are
    all linear and act on rows and columns separately, so any chain of them is this pair of matrices.
    Cells of several windows lie side by side in one grid (a mosaic), and the full-size picture of all
    classes is never built: any band of it is a small product.

    Attributes:
        rows: `(H, h)`.
        cols: `(W, w)`.
    """

    rows: Float[Tensor, "H h"]
    cols: Float[Tensor, "W w"]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Pixels `(H, W)` of the picture."""
        return self.rows.shape[0], self.cols.shape[0]

    @classmethod
    def bilinear(cls, grid_hw: tuple[int, int], size_hw: tuple[int, int]) -> Resampling:
        """Plain bilinear upsampling of a grid, `align_corners=False`, no antialias."""
        return cls(bilinear_matrix(grid_hw[0], size_hw[0]), bilinear_matrix(grid_hw[1], size_hw[1]))

    def then(self, size_hw: tuple[int, int]) -> Resampling:
        """The same picture, resized bilinearly once more. Nothing happens where the size is the same."""
        if size_hw == self.size_hw:
            return self
        return Resampling(
            bilinear_matrix(self.rows.shape[0], size_hw[0]).to(self.rows) @ self.rows,
            bilinear_matrix(self.cols.shape[0], size_hw[1]).to(self.cols) @ self.cols,
        )

    def to(self, device: torch.device | str) -> Resampling:
        """A copy on another device."""
        return Resampling(self.rows.to(device), self.cols.to(device))

    def apply(self, grid: Float[Tensor, "*lead h w"]) -> Float[Tensor, "*lead H W"]:
        """The whole picture. Costs leading axes times H times W; see `tiles` for the frugal way."""
        return self.rows.to(grid.dtype) @ grid @ self.cols.to(grid.dtype).T

    def tiles(
        self, grid: Float[Tensor, "Q h w"], max_elements: int | None = None
    ) -> Iterator[tuple[slice, slice, Float[Tensor, "Q y x"]]]:
        """The picture piece by piece: `(rows, columns, values)`, each of about `max_elements` at most."""
        height, width = self.size_hw
        limit = max_elements or TILE_ELEMENTS.get(grid.device.type, TILE_ELEMENTS["cpu"])
        per_tile = max(limit // grid.shape[0], 1)
        tile_w = min(width, math.isqrt(per_tile))
        tile_h = max(1, min(height, per_tile // tile_w))
        by_row = grid.transpose(0, 1).contiguous()  # (h, Q, w): then both products are plain matrix products
        for left in range(0, width, tile_w):
            xs = slice(left, min(left + tile_w, width))
            cols, used_w = _used(self.cols[xs])
            for top in range(0, height, tile_h):
                ys = slice(top, min(top + tile_h, height))
                rows, used_h = _used(self.rows[ys])
                wide = by_row[used_h, :, used_w] @ cols.to(grid.dtype).T
                piece = rows.to(grid.dtype) @ wide.flatten(1)
                yield ys, xs, piece.unflatten(1, wide.shape[1:]).transpose(0, 1)


def _used(matrix: Tensor) -> tuple[Tensor, slice]:
    """The matrix without the leading and trailing columns that are all zero."""
    columns = matrix.any(dim=0).nonzero()
    used = slice(int(columns[0]), int(columns[-1]) + 1)
    return matrix[:, used], used


def bilinear_matrix(cells: int, pixels: int) -> Float[Tensor, "pixels cells"]:
    """The matrix of a one-dimensional bilinear resize, torch's `interpolate(align_corners=False)`."""
    if cells < 1 or pixels < 1:
        raise ShapeError(f"cannot resize {cells} cells to {pixels} pixels: both must be at least 1")
    basis = torch.eye(cells)[None]
    return F.interpolate(basis, size=pixels, mode="linear", align_corners=False)[0].T.contiguous()


@dataclass(frozen=True)
class DenseFeatures:
    """An image in the shared image-text space, ready for any words: encode once, ask many questions.

    Attributes:
        grid: `(B, D, h, w)`, unit length along D; the patches of all windows as one mosaic.
        resampling: from the mosaic to the picture.
    """

    grid: Float[Tensor, "B D h w"]
    resampling: Resampling


@dataclass(frozen=True)
class ScoreMap:
    """How well each query fits each cell: the map that every head reads.

    Attributes:
        cosine: `(B, Q, h, w)`, similarity of patch and text in [-1, 1].
        bank: the words behind Q.
        temperature: logits are `temperature * cosine` (a logit scale: 40, 50, 100 ...).
        resampling: from the grid to `image_hw`.
        softmax_at: "pixel" takes probabilities after upsampling cosines (the SCLIP family);
            "patch" upsamples and averages probabilities (CLIP-DINOiser).
        softmax_over: "query" as published (synonyms compete with each other, so each one added lowers
            all probabilities); "class" takes the best query of a class first.
    """

    cosine: Float[Tensor, "B Q h w"]
    bank: TextBank
    temperature: float
    resampling: Resampling
    softmax_at: Literal["pixel", "patch"] = "pixel"
    softmax_over: Literal["query", "class"] = "query"

    @property
    def image_hw(self) -> tuple[int, int]:
        """Pixels `(H, W)` that `resampling` leads to."""
        return self.resampling.size_hw

    def __len__(self) -> int:
        return self.cosine.shape[0]

    def select(self, index: int) -> ScoreMap:
        """The map of one image of the batch."""
        return replace(self, cosine=self.cosine[index : index + 1])

    @property
    def logits(self) -> Float[Tensor, "B Q h w"]:
        """`temperature * cosine` on the grid, float32."""
        return self.cosine.float() * self.temperature

    @property
    def probabilities(self) -> Float[Tensor, "B K h w"]:
        """Class probabilities on the grid, without upsampling. See `class_probabilities`."""
        return torch.stack([self.class_probabilities(each) for each in self.cosine.float()])

    def per_class(self, values: Float[Tensor, "Q *space"]) -> Float[Tensor, "K *space"]:
        """The best query of each class: maximum over the queries that speak for it."""
        if self.bank.one_query_per_class:
            return values
        queries = [(self.bank.class_of_query == k).nonzero()[:, 0] for k in range(len(self.bank.names))]
        best = values[torch.stack([each[0] for each in queries])]
        for k, several in enumerate(queries):
            if len(several) > 1:
                best[k] = values[several].amax(dim=0)
        return best

    def class_probabilities(self, cosine: Float[Tensor, "Q *space"]) -> Float[Tensor, "K *space"]:
        """Class probabilities from cosines.

        With `softmax_over="query"` the sum over classes is at most 1, as published: a class has the
        probability of its best query.
        """
        if self.softmax_over == "class":
            return (self.per_class(cosine) * self.temperature).softmax(dim=0)
        return self.per_class((cosine * self.temperature).softmax(dim=0))

    def tiles(
        self, index: int, size_hw: tuple[int, int]
    ) -> Iterator[tuple[slice, slice, Float[Tensor, "K y x"]]]:
        """One image's class probabilities at full size, piece by piece (bounded memory, any K).

        Args:
            index: which image of the batch.
            size_hw: size of the picture; the map's own `image_hw`, or any other.
        """
        resampling = self.resampling.then(size_hw)
        cosine = self.cosine[index].float()
        if self.softmax_at == "patch":
            yield from resampling.tiles(self.class_probabilities(cosine))
        else:
            for ys, xs, piece in resampling.tiles(cosine):
                yield ys, xs, self.class_probabilities(piece)

    def labels(
        self, size_hw: tuple[int, int] | None = None, *, allowed: Bool[Tensor, "B K"] | None = None
    ) -> tuple[Int[Tensor, "B H W"], Float[Tensor, "B H W"]]:
        """The best class of every pixel and its probability, in bounded memory.

        The same as the first of `topk`, without computing the other classes' probabilities.

        Args:
            size_hw: size of the picture, by default `image_hw`.
            allowed: classes that take part, by image; the others count as probability 0.
        """
        size_hw = size_hw or self.image_hw
        labels = torch.empty(len(self), *size_hw, dtype=torch.long)
        confidence = torch.empty(len(self), *size_hw)
        resampling = self.resampling.then(size_hw)
        for index in range(len(self)):
            barred = None if allowed is None else ~allowed[index].to(self.cosine.device)
            cosine = self.cosine[index].float()
            if self.softmax_at == "patch":
                grid, best_of = self.class_probabilities(cosine), _best_probability
            else:
                grid, best_of = cosine * self.temperature, self._best_logit
            for ys, xs, piece in resampling.tiles(grid):
                best, which = best_of(piece, barred)
                labels[index, ys, xs] = which.cpu()
                confidence[index, ys, xs] = best.cpu()
        return labels, confidence

    def _best_logit(
        self, logits: Float[Tensor, "Q y x"], barred: Bool[Tensor, " K"] | None
    ) -> tuple[Float[Tensor, "y x"], Int[Tensor, "y x"]]:
        """Probability and index of the best class: `exp(best) / sum(exp)`, one exponential per query."""
        classes = self.per_class(logits)
        if barred is None:
            best, which = classes.max(dim=0)
            peak = best
        else:
            peak = classes.amax(dim=0)
            best, which = classes.masked_fill(barred[:, None, None], -torch.inf).max(dim=0)
        competitors = classes if self.softmax_over == "class" else logits
        return (best - peak).exp() / (competitors - peak).exp_().sum(dim=0), which

    def topk(
        self, k: int, size_hw: tuple[int, int] | None = None
    ) -> tuple[Float[Tensor, "B k H W"], Int[Tensor, "B k H W"]]:
        """The k best classes of every pixel, in bounded memory: `(probabilities, class indices)`."""
        size_hw = size_hw or self.image_hw
        values = torch.empty(len(self), k, *size_hw)
        indices = torch.empty(len(self), k, *size_hw, dtype=torch.long)
        for index in range(len(self)):
            for ys, xs, piece in self.tiles(index, size_hw):
                best, which = piece.topk(k, dim=0)
                values[index, :, ys, xs] = best.cpu()
                indices[index, :, ys, xs] = which.cpu()
        return values, indices


def _best_probability(
    probabilities: Float[Tensor, "K y x"], barred: Bool[Tensor, " K"] | None
) -> tuple[Float[Tensor, "y x"], Int[Tensor, "y x"]]:
    if barred is not None:
        probabilities = probabilities.masked_fill(barred[:, None, None], 0)
    return probabilities.max(dim=0)
