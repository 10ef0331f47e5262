"""The nouns that every part of ovseg speaks.

Axis letters, everywhere: B images, K classes, Q queries (prompts), C channels, D the shared image-text
dimension, G attention heads or groups, N tokens, P prefix tokens (class, registers), d channels of a
head, h w grid cells, H W pixels. Height comes before width, always.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ovseg.errors import ShapeError, VocabularyError
from ovseg.prototypes import VisualPrototypes
from ovseg.resampling import Resampling


@dataclass(frozen=True)
class Pictures:
    """A batch of images of one size, as a method takes them.

    Attributes:
        image: RGB in [0, 1] `(B, 3, h, w)`, resized as the method wants.
        originals: RGB `(H, W, 3)` as given, for what looks at full resolution (SAM); () where only `image`
            is known.
        regions: region ids `(H, W)` at the original size, 0 where there is none; () where nobody gave any.
    """

    image: Float[Tensor, "B 3 h w"]
    originals: tuple[UInt8[np.ndarray, "H W 3"], ...] = ()
    regions: tuple[Int[np.ndarray, "H W"], ...] = ()

    def __post_init__(self) -> None:
        for what in ("originals", "regions"):
            given = getattr(self, what)
            if given and len(given) != len(self):
                raise ShapeError(f"{len(self)} images came with {len(given)} {what}: give one for each")

    def __len__(self) -> int:
        return len(self.image)

    def select(self, index: int) -> Pictures:
        """One image of the batch."""
        one = slice(index, index + 1)
        return Pictures(self.image[one], self.originals[one], self.regions[one])

    @cached_property
    def full(self) -> tuple[UInt8[np.ndarray, "H W 3"], ...]:
        """The originals; where there are none, `image` as bytes."""
        if self.originals:
            return self.originals
        pixels = (self.image.permute(0, 2, 3, 1) * 255).round().clamp(0, 255)
        return tuple(pixels.to(torch.uint8).cpu().numpy())


@dataclass(frozen=True)
class PatchFeatures:
    """What an encoder knows about an image, a vector per patch.

    Attributes:
        grid: patch tokens `(B, C, h, w)`.
        prefix: class and register tokens `(B, P, C)`; P may be 0.
        image_hw: pixels `(H, W)` of the encoder's input.
        objectness: logits `(B, 1, h, w)` of "something is here", where a method has them.
    """

    grid: Float[Tensor, "B C h w"]
    prefix: Float[Tensor, "B P C"]
    image_hw: tuple[int, int]
    objectness: Float[Tensor, "B 1 h w"] | None = None


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


def mix_heads(weights: Float[Tensor, "B N M"], values: Float[Tensor, "B G M d"]) -> Float[Tensor, "B G N d"]:
    """`weights @ values`, the same for every head, as one product: broadcasting would copy them for each."""
    flat = values.transpose(1, 2).flatten(2)
    return (weights.to(values.dtype) @ flat).unflatten(-1, (values.shape[1], -1)).transpose(1, 2)


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
            if self.matrix.shape[1] == 1:
                return mix_heads(self.matrix[:, 0], values)
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
        ffn_taps: normalised FFN inputs `(B, N, C)` of earlier blocks, likewise.
    """

    q: Float[Tensor, "B G N d"]
    k: Float[Tensor, "B G N d"]
    v: Float[Tensor, "B G N d"]
    residual: Float[Tensor, "B N C"]
    hw: tuple[int, int]
    num_prefix: int
    image_hw: tuple[int, int]
    taps: Mapping[int, Tensor] = field(default_factory=dict)
    ffn_taps: Mapping[int, Tensor] = field(default_factory=dict)

    def values_on(self, hw: tuple[int, int], num_prefix: int) -> Float[Tensor, "B G M d"]:
        """The values on another grid, bilinear, without the prefix tokens where `num_prefix` is 0."""
        if (hw, num_prefix) == (self.hw, self.num_prefix):
            return self.v
        prefix, patches = self.v[:, :, : self.num_prefix], self.v[:, :, self.num_prefix :]
        if num_prefix not in (0, self.num_prefix):
            raise ShapeError(f"values have {self.num_prefix} prefix tokens, {num_prefix} were asked for")
        grid = patches.mT.flatten(0, 1).unflatten(-1, self.hw)
        if hw != self.hw:
            grid = F.interpolate(grid, size=hw, mode="bilinear", align_corners=False)
        patches = grid.flatten(2).unflatten(0, self.v.shape[:2]).mT
        return torch.cat([prefix[:, :, :num_prefix], patches], dim=2)


@dataclass(frozen=True)
class TextBank:
    """The words, encoded.

    Attributes:
        embeddings: `(Q, D)`, unit rows, one per query.
        class_of_query: `(Q,)`, the class that each query speaks for; every class has a query.
        names: the K class names.
        background: which classes are background (any number, also none).
        thresholds: least probability per class, or None for the head's own.
        prototypes: what examples of some classes add to their logits, or None.
        no: `(Q, D)`, unit rows: the queries' absence, as a second text tower encodes it (CLIPN), or None.
    """

    embeddings: Float[Tensor, "Q D"]
    class_of_query: Int[Tensor, " Q"]
    names: tuple[str, ...]
    background: frozenset[int] = frozenset()
    thresholds: tuple[float | None, ...] | None = None
    prototypes: VisualPrototypes | None = None
    no: Float[Tensor, "Q D"] | None = None

    def __post_init__(self) -> None:
        if not self.names:
            raise VocabularyError("a text bank needs at least one class, got none")
        spoken_for = set(self.class_of_query.tolist())
        if spoken_for != set(range(len(self.names))):
            raise VocabularyError(
                f"class_of_query must name each of the {len(self.names)} classes 0..{len(self.names) - 1} "
                f"at least once and nothing else, got {sorted(spoken_for)[:20]}"
            )

    @cached_property
    def one_query_per_class(self) -> bool:
        """Whether query `i` is class `i`, so that nothing needs merging."""
        return self.class_of_query.tolist() == list(range(len(self.names)))

    @cached_property
    def queries_of_class(self) -> tuple[Int[Tensor, " n"], ...]:
        """The queries that speak for each class."""
        return tuple((self.class_of_query == k).nonzero()[:, 0] for k in range(len(self.names)))

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> TextBank:
        """On another device, with embeddings in another dtype; itself where nothing changes."""
        same_dtype = dtype in (None, self.embeddings.dtype)
        if self.embeddings.device == torch.device(device) and same_dtype:
            return self
        return replace(
            self,
            embeddings=self.embeddings.to(device=device, dtype=dtype),
            class_of_query=self.class_of_query.to(device),
            prototypes=None if self.prototypes is None else self.prototypes.to(device),
            no=None if self.no is None else self.no.to(device=device, dtype=dtype),
        )


@dataclass(frozen=True)
class DenseFeatures:
    """An image in the shared image-text space, ready for any words: encode once, ask many questions.

    Attributes:
        grid: `(B, D, h, w)`, unit length along D; the patches of all windows as one mosaic.
        resampling: from the mosaic to the picture.
        image: the class token `(B, D)`, unit length, mean over windows; None where the tower has none.
        objectness: logits `(B, 1, h, w)` of "something is here", where a method has them.
        pictures: what they were made of; refinement reads its colours.
        sam: the images as SAM has embedded them (`ovseg.encoders.sam.SamImage`), where a method asked it.
    """

    grid: Float[Tensor, "B D h w"]
    resampling: Resampling
    image: Float[Tensor, "B D"] | None = None
    objectness: Float[Tensor, "B 1 h w"] | None = None
    pictures: Pictures | None = None
    sam: Any = None

    def cosine(self, rows: Float[Tensor, "Q D"]) -> Float[Tensor, "B Q h w"]:
        """Of every cell with every row; rows have unit length."""
        return torch.einsum("bdhw,qd->bqhw", self.grid, rows)

    def to(self, device: torch.device | str) -> DenseFeatures:
        """On another device, without pictures."""
        return DenseFeatures(
            self.grid.to(device),
            self.resampling.to(device),
            None if self.image is None else self.image.to(device),
            None if self.objectness is None else self.objectness.to(device),
            None,
            None if self.sam is None else self.sam.to(device),
        )

    def select(self, index: int) -> DenseFeatures:
        """Those of one image of the batch."""
        one = slice(index, index + 1)
        return DenseFeatures(
            self.grid[one],
            self.resampling,
            None if self.image is None else self.image[one],
            None if self.objectness is None else self.objectness[one],
            None if self.pictures is None else self.pictures.select(index),
            None if self.sam is None else self.sam.select(index),
        )
