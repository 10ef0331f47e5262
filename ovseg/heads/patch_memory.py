"""Patches of good images, kept to compare others with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ovseg.errors import CheckpointError, ConfigError, ShapeError

FORMAT = "ovseg-patch-memory-1"
#: Similarities held at once.
ELEMENTS = 2**23
#: Dimensions that greedy thinning compares in, by random projection (PatchCore uses 128, too).
PROJECTED = 128

#: How patches above the limit go: at random, or so that those kept cover all (greedy k-centre, slow).
Thinning = Literal["random", "greedy"]


@dataclass(frozen=True)
class PatchMemory:
    """What patches of good images look like.

    Attributes:
        vectors: `(M, C)`, unit rows.
        image_of: `(M,)`, which good image each is from.
        about: what made them: the guide, the hash of its weights, how images were cut.
    """

    vectors: Float[Tensor, "M C"]
    image_of: Int[Tensor, " M"]
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not len(self.vectors) or len(self.vectors) != len(self.image_of):
            raise ShapeError(
                f"a memory holds patches, each with its image: got {len(self.vectors)} patches and "
                f"{len(self.image_of)} image numbers"
            )

    def to(self, device: torch.device | str) -> PatchMemory:
        """On another device."""
        return replace(self, vectors=self.vectors.to(device), image_of=self.image_of.to(device))

    def distances(self, patches: Float[Tensor, "N C"], *, without: int | None = None) -> Float[Tensor, " N"]:
        """Cosine distance to the nearest patch in memory, `1 - cos`, in [0, 2]. Bounded memory.

        Args:
            patches: unit rows.
            without: leave out what this good image has put in.

        Raises:
            ShapeError: the patches have other channels.
            ConfigError: nothing is left to compare with.
        """
        if patches.shape[1] != self.vectors.shape[1]:
            raise ShapeError(
                f"patches have {patches.shape[1]} channels, those in memory {self.vectors.shape[1]}: take "
                f"the guide that the memory was made with"
            )
        left_out = None if without is None else self.image_of == without
        if left_out is not None and left_out.all():
            raise ConfigError(
                "a good image can be scored by other good images only, and the memory has no other: give at "
                "least two, or a threshold"
            )
        rows = min(len(patches), 1024) or 1
        nearest = patches.new_full((len(patches),), -torch.inf)
        for start in range(0, len(self.vectors), ELEMENTS // rows):
            part = slice(start, start + ELEMENTS // rows)
            for top in range(0, len(patches), rows):
                similar = patches[top : top + rows] @ self.vectors[part].T
                if left_out is not None:
                    similar = similar.masked_fill(left_out[part], -torch.inf)
                best = similar.amax(dim=1)
                nearest[top : top + rows] = torch.maximum(nearest[top : top + rows], best)
        return (1 - nearest).clamp(0, 2)

    def save(self, path: Path) -> None:
        """Writes safetensors, vectors as float16."""
        vectors = self.vectors.detach().half().cpu().contiguous()
        image_of = self.image_of.int().cpu().contiguous()
        about = json.dumps(dict(self.about), sort_keys=True)
        metadata = {"format": FORMAT, "about": about, "sha256": _digest(about, vectors, image_of)}
        save_file({"vectors": vectors, "image_of": image_of}, path, metadata)

    @classmethod
    def load(cls, path: Path, expected: Mapping[str, Any]) -> PatchMemory:
        """Reads what `save` wrote.

        Args:
            path: the file.
            expected: what must have made it (`MemoryBankHead.settings`).

        Raises:
            CheckpointError: damaged, no memory of patches, or made by something else.
        """
        try:
            with safe_open(path, framework="pt") as stored:
                metadata = stored.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError("it is another kind of file")
                vectors, image_of = stored.get_tensor("vectors"), stored.get_tensor("image_of")
            if metadata.get("sha256") != _digest(metadata["about"], vectors, image_of):
                raise ValueError("its checksum is wrong")
            about = json.loads(metadata["about"])
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is no usable memory of patches: {error}") from error
        for name, value in json.loads(json.dumps(dict(expected))).items():
            if about.get(name) != value:
                raise CheckpointError(
                    f"{path} was made with {name} {about.get(name)!r}, here it is {value!r}: build it "
                    f"again from the good images"
                )
        return cls(F.normalize(vectors.float(), dim=1), image_of.long(), about)


class PatchCollector:
    """Patches image by image, never more than twice the limit.

    Args:
        limit: patches kept.
        thinning: see `Thinning`. Random thinning gives each patch of the whole stream the same chance.
        seed: of the choice.
    """

    def __init__(self, limit: int, *, thinning: Thinning = "random", seed: int = 0) -> None:
        if limit < 1:
            raise ConfigError(f"a memory keeps at least 1 patch, got a limit of {limit}")
        if thinning not in get_args(Thinning):
            raise ConfigError(f"thinning must be one of {', '.join(get_args(Thinning))}, got '{thinning}'")
        self.limit = limit
        self.thinning = thinning
        self.generator = torch.Generator().manual_seed(seed)
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, patches: Float[Tensor, "N C"], image: int) -> None:
        """Adds an image's patches, unit rows."""
        for part in patches.cpu().split(self.limit):
            keys = torch.rand(len(part), generator=self.generator)
            self._parts.append((part, torch.full((len(part),), image), keys))
            if sum(len(each) for each, _, _ in self._parts) > 2 * self.limit:
                self._thin()

    def memory(self, about: Mapping[str, Any]) -> PatchMemory:
        """All so far, thinned to the limit."""
        if not self._parts:
            raise ConfigError("a memory of good images needs at least one image, got none")
        self._thin()
        vectors, image_of, _ = self._parts[0]
        return PatchMemory(vectors, image_of, about)

    def _thin(self) -> None:
        vectors, image_of, keys = (torch.cat(each) for each in zip(*self._parts, strict=True))
        if len(vectors) > self.limit:
            if self.thinning == "greedy":
                kept = farthest_first(vectors, self.limit, generator=self.generator)
            else:
                kept = keys.argsort()[: self.limit]
            kept = kept.sort().values
            vectors, image_of, keys = vectors[kept], image_of[kept], keys[kept]
        self._parts = [(vectors, image_of, keys)]


def farthest_first(
    vectors: Float[Tensor, "N C"], count: int, *, generator: torch.Generator
) -> Int[Tensor, " count"]:
    """Indices of vectors that cover all: each is the farthest from those before it (greedy k-centre).

    Source: Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), CVPR 2022,
    algorithm 1; like there, distances are those of a random projection. Time grows with N times count.
    """
    points = vectors.float()
    if points.shape[1] > PROJECTED:
        points = points @ (torch.randn(points.shape[1], PROJECTED, generator=generator) * PROJECTED**-0.5)
    squares = (points**2).sum(dim=1)
    chosen = torch.empty(min(count, len(points)), dtype=torch.long)
    gap = torch.full_like(squares, torch.inf)
    current = int(torch.randint(len(points), (), generator=generator))
    for index in range(len(chosen)):
        chosen[index] = current
        gap = torch.minimum(gap, squares + squares[current] - 2 * (points @ points[current]))
        gap[current] = -torch.inf  # never twice
        current = int(gap.argmax())
    return chosen


def _digest(about: str, vectors: Tensor, image_of: Tensor) -> str:
    content = about.encode() + vectors.numpy().tobytes() + image_of.numpy().tobytes()
    return hashlib.sha256(content).hexdigest()
