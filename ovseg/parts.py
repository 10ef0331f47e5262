"""The networks beside CLIP that a method or a refinement asks: from a name to a module.

A part is named as its weights are in `ovseg.encoders.weights` ("dino_vitb8"), "bundled", with a file of one's
own as `name=FILE`, or "none" where the method can do without. What a call does not need is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ovseg.encoders.checkpoints import sha256_of
from ovseg.encoders.weights import BUNDLED, Kind
from ovseg.errors import ConfigError, unknown_name
from ovseg.methods import PUBLISHED_PARTS, parts_of
from ovseg.refine.pamr import PAMR

#: A part's name, or the module itself.
Part = str | nn.Module


def _guide(name: str) -> nn.Module:
    from ovseg.encoders.guide_loading import load_guide

    return load_guide(name)


def _sam(name: str) -> nn.Module:
    from ovseg.encoders.guide_loading import load_sam

    return load_sam(name)


def _saliency(name: str) -> nn.Module:
    from ovseg.methods.dinoiser_loading import load_found

    return load_found(name)


def _convolutions(name: str) -> nn.Module:
    from ovseg.methods.dinoiser_loading import load_dinoiser

    return load_dinoiser(name)


#: How each part is loaded. "guide" says which patches belong together, "sam" segments, "saliency" says where
#: any object is, "convolutions" are CLIP-DINOiser's and belong to one image tower.
LOADERS: dict[str, Callable[[str], nn.Module]] = {
    "guide": _guide,
    "sam": _sam,
    "saliency": _saliency,
    "convolutions": _convolutions,
}


#: The package's own weights, and the kind of the others in the table of weights.
BUNDLED_FILES = {
    "guide": "affinity.safetensors",
    "sam": "sam.safetensors",
    "saliency": "found.safetensors",
    "convolutions": "dinoiser.safetensors",
}
KINDS: dict[str, Kind] = {"sam": "sam", "saliency": "found", "convolutions": "dinoiser"}


def _sam_masks(sam: nn.Module | None) -> nn.Module:
    from ovseg.refine.sam_masks import SamMasks

    if sam is None:
        raise ConfigError("refinement 'sam' needs a SAM: name one, such as sam_vitb")

    return SamMasks(sam)


def _region_voting(sam: nn.Module | None) -> nn.Module:
    from ovseg.refine.region_voting import RegionVoting

    return RegionVoting(sam)


#: Refinements by name.
REFINEMENTS: dict[str, Callable[..., nn.Module]] = {
    "pamr": PAMR,
    "sam": _sam_masks,
    "regions": _region_voting,
}
_ASK_SAM = ("sam", "regions")


def refinement_names(refine: str | Sequence[str | nn.Module] | None) -> list[str | nn.Module] | None:
    """What `refine` asks for, in order: None is the method's own, "none" or an empty list is nothing.

    Raises:
        ConfigError: no such refinement; the message lists them and the nearest match.
    """
    if refine is None:
        return None
    steps: list[str | nn.Module] = (
        [step.strip() for step in refine.split(",")] if isinstance(refine, str) else list(refine)
    )
    if steps == ["none"]:
        return []
    for step in steps:
        if isinstance(step, str) and step not in REFINEMENTS:
            raise unknown_name("refinement", step, ["none", *REFINEMENTS])
    return steps


def asks_sam(refine: Sequence[str | nn.Module] | None) -> bool:
    """Whether a refinement needs the part `sam`."""
    return any(step in _ASK_SAM for step in refine or () if isinstance(step, str))


def part_names(
    method: str | Callable[..., Any],
    given: Mapping[str, Part | None],
    refine: Sequence[str | nn.Module] | None,
    *,
    bundled: bool,
    outlines: bool = False,
) -> dict[str, Part]:
    """The parts that a method and its refinements take: those given, else those that it was published with.

    Args:
        method: a published method's name, or a maker of one's own, which gets what is given.
        given: by part; None where the user said nothing.
        refine: see `refinement_names`.
        bundled: the encoder is the bundled one, whose parts are bundled, too.
        outlines: whether a SAM draws outlines, whatever the method.

    Raises:
        ConfigError: a part was given that nothing would use.
    """
    chosen = {part: value for part, value in given.items() if value is not None}
    published = dict(PUBLISHED_PARTS.get(method, {})) if isinstance(method, str) else {}
    takes = parts_of(method) if isinstance(method, str) else tuple(chosen)
    if asks_sam(refine) or outlines:
        takes = (*takes, "sam") if "sam" not in takes else takes
        published.setdefault("sam", "sam_vitb")
    for part in chosen:
        if part not in takes:
            names = ", ".join(takes) or "none"
            raise ConfigError(f"method '{method}' has no use for the part '{part}' (it takes: {names})")
    asked = {part: chosen.get(part, BUNDLED if bundled else published.get(part, BUNDLED)) for part in takes}
    return {part: name for part, name in asked.items() if name != "none"}


def weights_file(part: str, name: str) -> Path:
    """The file that a part would be loaded from.

    Raises:
        ConfigError: unknown name.
        CheckpointError: the file is not there and not to be had.
    """
    from ovseg.encoders.guide_loading import locate
    from ovseg.methods.dinoiser_loading import bundled_file

    if name == BUNDLED:
        return bundled_file(BUNDLED_FILES[part])
    kinds: tuple[Kind, ...] = ("dino", "sam") if part == "guide" else (KINDS[part],)
    return locate(name, *kinds)[1]


def load_parts(names: Mapping[str, Part]) -> dict[str, nn.Module]:
    """The modules; one that is a module already is handed through.

    Raises:
        ConfigError: unknown name.
        CheckpointError: weights are missing or unusable.
    """
    return {
        part: (LOADERS[part](value) if isinstance(value, str) else value).eval().requires_grad_(False)
        for part, value in names.items()
    }


def build_refinements(steps: Sequence[str | nn.Module], parts: Mapping[str, nn.Module]) -> list[nn.Module]:
    """Steps of `Scorer.refine`; one that is a module already is handed through."""
    return [
        step
        if isinstance(step, nn.Module)
        else REFINEMENTS[step](parts.get("sam"))
        if step in _ASK_SAM
        else REFINEMENTS[step]()
        for step in steps
    ]


def describe_part(part: str, named: Part, loaded: Part) -> dict[str, Any]:
    """What a manifest says of a part, as it was named and, if it is there, as it was loaded."""
    name = named if isinstance(named, str) else type(named).__name__
    if isinstance(loaded, str):
        return {"name": name, "weights_sha256": sha256_of(weights_file(part, loaded))}
    return {"name": name, "weights_sha256": getattr(loaded, "weights_sha256", "")}


class Unloaded(nn.Module):
    """Stands for a part where nothing but its name is needed."""

    def with_kind(self, kind: str, layer: int = -1) -> Unloaded:
        """Itself: see `ovseg.encoders.dino.DinoEncoder.with_kind`."""
        del kind, layer
        return self
