"""The pixel-text score map: how well each query fits each cell, and how that becomes classes of pixels.

Axis letters as in `ovseg.structures`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ovseg.errors import ShapeError
from ovseg.resampling import Resampling, tile_elements
from ovseg.structures import TextBank

#: Mixes the pixels of maps `(Q, H, W)`, each map alone, keeping the size (PAMR).
Spread = Callable[[Tensor], Tensor]
#: Elements of spread maps that may be held at once: 256 MB.
HELD = 2**26
#: Corrects decided labels: `(score map of that one image, labels (H, W), confidence (H, W))` to new labels,
#: new confidence. Heads apply it after their thresholds (SAM masks, region voting).
Revision = Callable[["ScoreMap", Tensor, Tensor], tuple[Tensor, Tensor]]


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
        spreads: one for each image, or none: applied to upsampled maps, a few at a time.
        objectness: logits `(B, 1, h, w)` of "something is here", with `softmax_at="patch"`: where it says no
            and no class is surer than `sure`, the first background class takes the patch (CLIP-DINOiser).
        sure: see `objectness`.
        revisions: for each image, in order, what corrects the labels that a head has decided; or none.
    """

    cosine: Float[Tensor, "B Q h w"]
    bank: TextBank
    temperature: float
    resampling: Resampling
    softmax_at: Literal["pixel", "patch"] = "pixel"
    softmax_over: Literal["query", "class"] = "query"
    spreads: tuple[Spread, ...] = ()
    objectness: Float[Tensor, "B 1 h w"] | None = None
    sure: float = 0.99
    revisions: tuple[tuple[Revision, ...], ...] = ()

    @property
    def image_hw(self) -> tuple[int, int]:
        """Pixels `(H, W)` that `resampling` leads to."""
        return self.resampling.size_hw

    def __len__(self) -> int:
        return self.cosine.shape[0]

    def select(self, index: int) -> ScoreMap:
        """The map of one image of the batch."""
        one = slice(index, index + 1)
        objectness = None if self.objectness is None else self.objectness[one]
        return replace(
            self,
            cosine=self.cosine[one],
            spreads=self.spreads[one],
            objectness=objectness,
            revisions=self.revisions[one],
        )

    def revised(self, revisions: Sequence[Revision]) -> ScoreMap:
        """With one more revision for each image."""
        if len(revisions) != len(self):
            raise ShapeError(
                f"a score map of {len(self)} images takes as many revisions, got {len(revisions)}"
            )
        so_far = self.revisions or ((),) * len(self)
        chains = tuple((*chain, last) for chain, last in zip(so_far, revisions, strict=True))
        return replace(self, revisions=chains)

    @property
    def logits(self) -> Float[Tensor, "B Q h w"]:
        """`temperature * cosine` on the grid, float32."""
        return self.cosine.float() * self.temperature

    @property
    def probabilities(self) -> Float[Tensor, "B K h w"]:
        """Class probabilities on the grid, without upsampling. See `class_probabilities`."""
        return torch.stack([self._grid_probabilities(index) for index in range(len(self))])

    def _grid_probabilities(self, index: int) -> Float[Tensor, "K h w"]:
        probabilities = self.class_probabilities(self.logits[index])
        if self.objectness is None or not self.bank.background:
            return probabilities
        unsure = probabilities.amax(dim=0) < self.sure
        nothing = unsure & (self.objectness[index, 0].sigmoid() <= 0.5)
        probabilities = probabilities.clone()
        probabilities[min(self.bank.background)].masked_fill_(nothing, 1)
        return probabilities

    def per_class(self, values: Float[Tensor, "Q *space"]) -> Float[Tensor, "K *space"]:
        """The best query of each class: maximum over the queries that speak for it."""
        if self.bank.one_query_per_class:
            return values
        queries = self.bank.queries_of_class
        best = values[torch.stack([each[0] for each in queries])]
        for k, several in enumerate(queries):
            if len(several) > 1:
                best[k] = values[several].amax(dim=0)
        return best

    def class_probabilities(self, logits: Float[Tensor, "Q *space"]) -> Float[Tensor, "K *space"]:
        """Class probabilities from logits.

        With `softmax_over="query"` the sum over classes is at most 1, as published: a class has the
        probability of its best query.
        """
        if self.softmax_over == "class":
            return self.per_class(logits).softmax(dim=0)
        return self.per_class(logits.softmax(dim=0))

    def pictures(
        self, index: int, maps: Float[Tensor, "M h w"], size_hw: tuple[int, int]
    ) -> Float[Tensor, "M H W"]:
        """Maps on one image's grid, upsampled, spread, and resized to `size_hw`."""
        if not self.spreads:
            return self.resampling.then(size_hw).apply(maps)
        spread = self.spreads[index](self.resampling.apply(maps))
        if size_hw == self.image_hw:  # else a dense product with two identity matrices, for nothing
            return spread
        return Resampling.bilinear(self.image_hw, size_hw).to(maps.device).apply(spread)

    def tiles(
        self, index: int, size_hw: tuple[int, int]
    ) -> Iterator[tuple[slice, slice, Float[Tensor, "K y x"]]]:
        """One image's class probabilities at full size, piece by piece: bounded memory for any K.

        With spreads, which need the whole picture, there is one piece.

        Args:
            index: which image of the batch.
            size_hw: size of the picture; the map's own `image_hw`, or any other.
        """
        patch = self.softmax_at == "patch"
        grid = self._grid_probabilities(index) if patch else self.logits[index]
        if self.spreads:
            picture = torch.cat([self.pictures(index, part, size_hw) for part in grid.split(1)])
            yield slice(None), slice(None), picture if patch else self.class_probabilities(picture)
            return
        for ys, xs, piece in self.resampling.then(size_hw).tiles(grid):
            yield ys, xs, piece if patch else self.class_probabilities(piece)

    def class_pictures(
        self, index: int, size_hw: tuple[int, int] | None = None
    ) -> Iterator[tuple[Int[Tensor, " k"], Float[Tensor, "k H W"]]]:
        """One image's class probabilities as whole pictures, a few classes at a time, in order.

        Args:
            index: which image of the batch.
            size_hw: size of the pictures, by default `image_hw`.
        """
        size_hw = size_hw or self.image_hw
        classes = torch.arange(len(self.bank.names), device=self.cosine.device)
        at_once = max(4 * tile_elements(self.cosine.device) // (size_hw[0] * size_hw[1]), 1)
        if self.softmax_at == "patch":
            grid = self._grid_probabilities(index)
            for part in classes.split(at_once):
                yield part, self.pictures(index, grid[part], size_hw)
            return
        if self.spreads and self.cosine.shape[1] * size_hw[0] * size_hw[1] <= HELD:
            [(_, _, pictures)] = self.tiles(index, size_hw)  # to spread twice costs more than to hold it
            yield classes, pictures
            return
        logits = self.logits[index]
        over_class = self.softmax_over == "class"
        total = self.cosine.new_full(size_hw, -torch.inf, dtype=torch.float32)
        for part in classes.split(at_once):
            total = torch.logaddexp(
                total, self._class_logits(index, logits, part, size_hw, over_class).logsumexp(dim=0)
            )
        for part in classes.split(at_once):
            best = self._class_logits(index, logits, part, size_hw, True)
            yield part, (best - total).exp_()

    def _class_logits(
        self,
        index: int,
        logits: Float[Tensor, "Q h w"],
        classes: Int[Tensor, " k"],
        size_hw: tuple[int, int],
        best: bool,
    ) -> Float[Tensor, "m H W"]:
        """Logit pictures of some classes: the best of each, or those of all their queries."""
        queries = [self.bank.queries_of_class[k] for k in classes.tolist()]
        picture = self.pictures(index, logits[torch.cat(queries)], size_hw)
        if not best or len(picture) == len(classes):
            return picture
        sizes = [len(each) for each in queries]
        return torch.stack([part.amax(dim=0) for part in picture.split(sizes)])

    def topk(
        self, k: int, size_hw: tuple[int, int] | None = None
    ) -> tuple[Float[Tensor, "B k H W"], Int[Tensor, "B k H W"]]:
        """The k best classes of every pixel: `(probabilities, class indices)`, best first."""
        size_hw = size_hw or self.image_hw
        values = self.cosine.new_empty((len(self), k, *size_hw), dtype=torch.float32)
        indices = torch.empty_like(values, dtype=torch.long)
        for index in range(len(self)):
            for ys, xs, piece in self.tiles(index, size_hw):
                values[index, :, ys, xs], indices[index, :, ys, xs] = piece.topk(k, dim=0)
        return values, indices

    def labels(
        self, size_hw: tuple[int, int] | None = None, *, allowed: Bool[Tensor, "B K"] | None = None
    ) -> tuple[Int[Tensor, "B H W"], Float[Tensor, "B H W"]]:
        """The best class of every pixel and its probability. Memory does not grow with K times pixels.

        The same as the first of `topk`, without the other classes' probabilities: one exponential per
        query and pixel.

        Args:
            size_hw: size of the picture, by default `image_hw`.
            allowed: classes that take part, by image; the others count as probability 0.
        """
        size_hw = size_hw or self.image_hw
        confidence = self.cosine.new_empty((len(self), *size_hw), dtype=torch.float32)
        labels = torch.empty_like(confidence, dtype=torch.long)
        for index in range(len(self)):
            everything = torch.zeros(len(self.bank.names), dtype=torch.bool)
            barred = (everything if allowed is None else ~allowed[index]).to(self.cosine.device)
            for ys, xs, best, which in self._best(index, size_hw, barred):
                confidence[index, ys, xs], labels[index, ys, xs] = best, which
        return labels, confidence

    def _best(
        self, index: int, size_hw: tuple[int, int], barred: Bool[Tensor, " K"]
    ) -> Iterator[tuple[slice, slice, Float[Tensor, "y x"], Int[Tensor, "y x"]]]:
        """Piece by piece in space, or (with spreads) query by query."""
        if self.softmax_at == "patch":
            grid, owner = self._grid_probabilities(index), torch.arange(len(barred), device=barred.device)
        else:
            grid, owner = self.logits[index], self.bank.class_of_query
        classes_compete = self.softmax_at == "pixel" and self.softmax_over == "class"
        if self.spreads:
            running = _RunningBest(barred, softmax=self.softmax_at == "pixel")
            for maps, owners in self._parts(grid, owner, size_hw, whole_classes=classes_compete):
                picture = self.pictures(index, maps, size_hw)
                if classes_compete:
                    picture, owners = picture.amax(dim=0, keepdim=True), owners[:1]
                running.add(picture, owners)
            yield slice(None), slice(None), *running.result()
            return
        if classes_compete:
            owner = torch.arange(len(barred), device=grid.device)
        for ys, xs, piece in self.resampling.then(size_hw).tiles(grid):
            running = _RunningBest(barred, softmax=self.softmax_at == "pixel")
            running.add(self.per_class(piece) if classes_compete else piece, owner)
            yield ys, xs, *running.result()

    def _parts(
        self,
        grid: Float[Tensor, "M h w"],
        owner: Int[Tensor, " M"],
        size_hw: tuple[int, int],
        *,
        whole_classes: bool,
    ) -> Iterator[tuple[Float[Tensor, "m h w"], Int[Tensor, " m"]]]:
        """A few maps at a time, or those of one class together."""
        if whole_classes:
            for queries in self.bank.queries_of_class:
                yield grid[queries], owner[queries]
        else:
            at_once = max(16 * tile_elements(grid.device) // (size_hw[0] * size_hw[1]), 1)
            yield from zip(grid.split(at_once), owner.split(at_once), strict=True)


class _RunningBest:
    """The best class of every pixel, over score pictures that come a few at a time.

    Args:
        barred: `(K,)`, classes that compete for probability and cannot win.
        softmax: whether scores are logits of one softmax; else they are probabilities already.
    """

    def __init__(self, barred: Bool[Tensor, " K"], *, softmax: bool) -> None:
        self.barred = barred if barred.any() else None
        self.softmax = softmax
        self.best: Tensor | None = None

    def add(self, scores: Float[Tensor, "m y x"], owner: Int[Tensor, " m"]) -> None:
        """Scores of some queries, and the classes that they speak for."""
        best, at = scores.max(dim=0)
        peak = best
        if self.barred is not None:
            best, at = scores.masked_fill(self.barred[owner][:, None, None], -torch.inf).max(dim=0)
        which = owner[at]
        if self.best is None:
            self.best, self.which, self.peak = best, which, peak
            if self.softmax:
                self.total = (scores - peak).exp_().sum(dim=0)
            return
        better = best > self.best
        self.best, self.which = torch.where(better, best, self.best), torch.where(better, which, self.which)
        if self.softmax:
            peak = torch.maximum(self.peak, peak)
            self.total = self.total * (self.peak - peak).exp() + (scores - peak).exp_().sum(dim=0)
            self.peak = peak

    def result(self) -> tuple[Float[Tensor, "y x"], Int[Tensor, "y x"]]:
        """Probability and index of the best class."""
        assert self.best is not None
        if self.softmax:
            return (self.best - self.peak).exp() / self.total, self.which
        return self.best.clamp_min(0), self.which
