"""From names to a scorer: with all its networks, or without image towers where features are there already."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ovseg.encoders.clip import ClipEncoder
from ovseg.encoders.clip_loading import LoadedClip
from ovseg.encoders.token_merging import TokenMerging
from ovseg.methods import build_method, parts_of
from ovseg.parts import Part, Unloaded, asks_sam, build_refinements, load_parts
from ovseg.scorer import Scorer


@dataclass(frozen=True)
class Recipe:
    """All that a scorer is built of.

    Attributes:
        method: a published method's name, or a maker of one's own.
        clip: the towers; the image tower may be missing still.
        parts: the networks beside CLIP, by name.
        steps: refinements instead of the method's own; None: those.
        options: of the method.
        device, dtype: of the networks.
        compile: a backend of torch.compile for the transformer blocks, or None.
        reject: steps after all refinement.
        outlines: whether heads ask SAM, too.
        merging: how CLIP's tower and a DINO guide merge tokens, or None.
    """

    method: str | Callable[..., Scorer]
    clip: LoadedClip
    parts: Mapping[str, Part]
    steps: Sequence[str | nn.Module] | None
    options: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    compile: str | None = None
    reject: tuple[nn.Module, ...] = ()
    merging: TokenMerging | None = None
    outlines: bool = False

    def scorer(self) -> Scorer:
        """With all its networks, on the device.

        Raises:
            ConfigError: a part that cannot merge tokens was to.
        """
        if any(parameter.is_meta for parameter in self.clip.model.visual.parameters()):
            self.clip.load_image_tower()
        tower, parts = self._tower(), self._merging_parts(load_parts(self.parts))
        scorer = self._build(tower, parts)
        networks: list[Any] = [tower, *parts.values()]
        for network in networks:
            network.cast(self.dtype)
            if self.compile is not None:
                network.compile_blocks(self.compile)
        return scorer.to(self.device)

    def reader(self) -> Scorer | None:
        """One that scores and refines features that are there, and holds no image tower.

        SAM is loaded where a refinement asks it, for its decoder. None where the method refines with its own
        networks.
        """
        asked = {"sam"} if asks_sam(self.steps) else set()
        loaded = load_parts({name: part for name, part in self.parts.items() if name in asked})
        tower = self._tower()
        tower.mean = tower.mean.to(self.device)
        absent = {name: Unloaded() for name in self.parts if name not in loaded}
        scorer = self._build(tower, absent | loaded)
        if any(isinstance(module, Unloaded) for module in scorer.refine.modules()):
            return None
        scorer.refine.to(self.device)
        return scorer

    def _tower(self) -> ClipEncoder:
        return ClipEncoder.of(self.clip, merging=self.merging)

    def _merging_parts(self, parts: dict[str, nn.Module]) -> dict[str, nn.Module]:
        """The guide merges, too, if it is a DINO; others have no blocks for that."""
        if self.merging is None:
            return parts
        able: dict[str, Any] = {name: part for name, part in parts.items() if hasattr(part, "with_merging")}
        return parts | {name: part.with_merging(self.merging) for name, part in able.items()}

    def _build(self, tower: ClipEncoder, parts: Mapping[str, nn.Module]) -> Scorer:
        build: Callable[..., Scorer]
        if isinstance(self.method, str):
            takes, build = parts_of(self.method), partial(build_method, self.method)
        else:  # a maker gets what was given, but not a SAM that only a refinement or the heads ask
            build, spared = self.method, asks_sam(self.steps) or self.outlines
            takes = tuple(part for part in parts if not (part == "sam" and spared))
        scorer = build(tower, **{part: parts[part] for part in takes if part in parts}, **self.options).eval()
        if self.steps is not None:
            scorer.refine = nn.ModuleList(build_refinements(self.steps, parts))
        scorer.refine.extend(self.reject)
        return scorer
