"""From a name to what CLIP-DINOiser and its teacher need: FOUND, and the two convolutions.

The bundled ones are of the bundled family: `found.safetensors` reads the keys of the bundled guide,
`dinoiser.safetensors` the inner features of the bundled CLIP.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from ovseg.encoders.checkpoints import load_state_dict, sha256_of
from ovseg.encoders.dino import DinoEncoder
from ovseg.encoders.found import FoundEncoder, load_decoder
from ovseg.encoders.guide_loading import load_guide, locate
from ovseg.encoders.weights import BUNDLED
from ovseg.errors import CheckpointError
from ovseg.methods.clip_dinoiser import DinoiserConvolutions

_NAMES = ("obj_proj.weight", "obj_proj.bias", "bkg_decoder.weight", "bkg_decoder.bias")


def bundled_file(name: str) -> Path:
    """A file of the package's own weights."""
    return Path(str(files("ovseg") / "bundled" / name))


def load_found(
    name: str = BUNDLED,
    *,
    dino: DinoEncoder | None = None,
    weights: Path | None = None,
    offline: bool | None = None,
    cache_dir: Path | None = None,
) -> FoundEncoder:
    """FOUND by name: the official decoder on its DINO, or the bundled one on the bundled guide.

    Args:
        name: of the table of weights, `NAME=FILE`, or "bundled".
        dino: the ViT to read, where it is loaded already; None loads the one that the decoder was trained on.
        weights, offline, cache_dir: see `ovseg.encoders.guide_loading.locate`.

    Returns:
        In eval mode, float32, without gradients, on the CPU.

    Raises:
        ConfigError: unknown name, or one of another part.
        CheckpointError: weights are not there, cannot be had, or are no FOUND decoder.
        ShapeError: the ViT is of another width than the decoder.
    """
    if name == BUNDLED and weights is None:
        path, trunk, called = bundled_file("found.safetensors"), BUNDLED, BUNDLED
    else:
        entry, path = locate(name, "found", weights=weights, offline=offline, cache_dir=cache_dir)
        trunk, called = entry.trunk, entry.name
    decoder = load_decoder(path)
    if dino is None:
        guide = load_guide(trunk, offline=offline, cache_dir=cache_dir)
        assert isinstance(guide, DinoEncoder), f"{called} stands on {trunk}"
        dino = guide
    found = FoundEncoder(dino, decoder, name=called, weights_sha256=sha256_of(path))
    return found.eval().requires_grad_(False)


def load_dinoiser(
    name: str = BUNDLED,
    *,
    weights: Path | None = None,
    offline: bool | None = None,
    cache_dir: Path | None = None,
) -> DinoiserConvolutions:
    """CLIP-DINOiser's convolutions by name: the official ones, or the bundled CLIP's.

    Args:
        name: of the table of weights, `NAME=FILE`, or "bundled".
        weights, offline, cache_dir: see `ovseg.encoders.guide_loading.locate`.

    Returns:
        In eval mode, float32, without gradients, on the CPU.

    Raises:
        ConfigError: unknown name, or one of another part.
        CheckpointError: weights are not there, cannot be had, or are no such convolutions.
    """
    if name == BUNDLED and weights is None:
        path, called = bundled_file("dinoiser.safetensors"), BUNDLED
    else:
        entry, path = locate(name, "dinoiser", weights=weights, offline=offline, cache_dir=cache_dir)
        called = entry.name
    return dinoiser_from_file(path, name=called)


def dinoiser_from_file(path: Path, *, name: str = "") -> DinoiserConvolutions:
    """The convolutions in a file, whatever their sizes; a frozen tower saved beside them is left out.

    Args:
        path: a state dict with `obj_proj.*` and `bkg_decoder.*`, as the official training saves it.
        name: for messages and manifests.

    Raises:
        CheckpointError: no such file, or names or shapes are not those of the convolutions.
    """
    state = load_state_dict(path)
    if missing := [each for each in _NAMES if each not in state]:
        raise CheckpointError(
            f"{path} holds no CLIP-DINOiser convolutions: {', '.join(missing)} missing; it has "
            f"{', '.join(list(state)[:4])}, ..."
        )
    found = {each: tuple(state[each].shape) for each in _NAMES}
    hidden, width = found["obj_proj.weight"][:2] if len(found["obj_proj.weight"]) == 4 else (0, 0)
    wanted = dict(zip(_NAMES, ((hidden, width, 3, 3), (hidden,), (1, width, 1, 1), (1,)), strict=True))
    for each in _NAMES:
        if found[each] != wanted[each]:
            raise CheckpointError(f"{path}: {each} is {found[each]} where {wanted[each]} is wanted")
    convolutions = DinoiserConvolutions(width, hidden, name=name, weights_sha256=sha256_of(path))
    convolutions.load_state_dict({each: state[each].float() for each in _NAMES})
    return convolutions.eval().requires_grad_(False)
