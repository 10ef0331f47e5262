"""The networks beside CLIP that ovseg knows by name: DINO, SAM, FOUND, CLIP-DINOiser's convolutions.

Architectures and repositories are timm's; its copies hold the authors' weights under almost their names.
SAM's authors keep theirs on no hub: the repository named here holds the original files, with the sha256 that
other copies state, too (the digits in the file names are of another hash).

Positions are as each family's own hub code has them: bicubic by scale factor with 0.1 added, but for DINOv2
with registers to the exact size with antialias (dinov2/hub/backbones.py at a44758b4).
"""

from __future__ import annotations

from ovseg.encoders.positions import PositionMode
from ovseg.encoders.weights_entry import IMAGENET_MEAN, IMAGENET_STD, Kind, WeightsEntry, WeightsFile

_TIMM_FILES = (WeightsFile("model.safetensors"), WeightsFile("pytorch_model.bin"))
_META = "https://dl.fbaipublicfiles.com"
_FOUND = "https://github.com/valeoai/FOUND/raw/1ad22bacf1a6854faff1b5d4be300d54cad6f277"
_DINOISER = "https://github.com/wysoczanska/clip_dinoiser/raw/a954aae6fb61f5ff18834e50a0c78a2258cd9afb"


def _vit(
    name: str,
    architecture: str,
    tag: str,
    licence: str = "Apache-2.0",
    source: str = "model card",
    *,
    positions: PositionMode = "offset",
    origin: str = "",
) -> WeightsEntry:
    return WeightsEntry(
        name,
        architecture,
        "",
        f"timm/{architecture}.{tag}",
        licence,
        source,
        files=_TIMM_FILES,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        kind="dino",
        positions=positions,
        origin=origin,
    )


def _dino(name: str, architecture: str, original: str) -> WeightsEntry:
    source = "model card; LICENSE of github.com/facebookresearch/dino"
    return _vit(name, architecture, "dino", source=source, origin=f"{_META}/dino/{original}/{original}.pth")


def _dinov2(size: str, timm_size: str, *, registers: bool = False) -> WeightsEntry:
    model = f"dinov2_vit{size}14"
    origin = f"{_META}/dinov2/{model}/{model}{'_reg4' if registers else ''}_pretrain.pth"
    return _vit(
        f"{model}_reg" if registers else model,
        f"vit_{timm_size}_patch14_{'reg4_' if registers else ''}dinov2",
        "lvd142m",
        source="model card; LICENSE of github.com/facebookresearch/dinov2",
        positions="antialias" if registers else "offset",
        origin=origin,
    )


def _dinov3(size: str, timm_size: str) -> WeightsEntry:
    source = "model card (DINOv3 License, with terms of its own: read LICENSE.md there)"
    architecture = f"vit_{timm_size}_patch16_dinov3"
    return _vit(f"dinov3_vit{size}16", architecture, "lvd1689m", "DINOv3-License", source)


def _sam(size: str, filename: str, sha256: str) -> WeightsEntry:
    return WeightsEntry(
        f"sam_vit{size}",
        f"vit_{size}",
        "",
        "ybelkada/segment-anything",
        "Apache-2.0",
        "the copy's card; LICENSE of github.com/facebookresearch/segment-anything",
        files=(WeightsFile(f"checkpoints/{filename}", sha256),),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        kind="sam",
        origin=f"{_META}/segment_anything/{filename}",
    )


def _by_hand(name: str, kind: Kind, origin: str, source: str, **facts: str | None) -> WeightsEntry:
    return WeightsEntry(
        name,
        facts.get("architecture") or "",
        "",
        "",
        "Apache-2.0",
        source,
        files=(WeightsFile(origin.rpartition("/")[2], facts.get("sha256")),),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        kind=kind,
        origin=origin,
        trunk=facts.get("trunk") or "",
    )


GUIDES: tuple[WeightsEntry, ...] = (
    _dino("dino_vits16", "vit_small_patch16_224", "dino_deitsmall16_pretrain"),
    _dino("dino_vits8", "vit_small_patch8_224", "dino_deitsmall8_pretrain"),
    _dino("dino_vitb16", "vit_base_patch16_224", "dino_vitbase16_pretrain"),
    _dino("dino_vitb8", "vit_base_patch8_224", "dino_vitbase8_pretrain"),
    # another training run than dino_vits8: DINO's visualize_attention.py and FOUND's model.py name it, and
    # FOUND's decoder reads the keys of no other
    _by_hand(
        "dino_vits8_300ep",
        "dino",
        f"{_META}/dino/dino_deitsmall8_300ep_pretrain/dino_deitsmall8_300ep_pretrain.pth",
        "LICENSE of github.com/facebookresearch/dino",
        architecture="vit_small_patch8_224",
    ),
    _dinov2("s", "small"),
    _dinov2("b", "base"),
    _dinov2("l", "large"),
    _dinov2("s", "small", registers=True),
    _dinov2("b", "base", registers=True),
    _dinov2("l", "large", registers=True),
    _dinov3("s", "small"),
    _dinov3("b", "base"),
    _dinov3("l", "large"),
    _sam("b", "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    _sam("l", "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    _sam("h", "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    _by_hand(
        "found_vits8",
        "found",
        f"{_FOUND}/data/weights/decoder_weights.pt",
        "LICENSE of github.com/valeoai/FOUND",
        sha256="47ff2a4af3dbc6c80cb832cc81f8ed8ae81809e52576d0de5f9c754cf46ef9b5",
        trunk="dino_vits8_300ep",
    ),
    _by_hand(
        "clip_dinoiser",
        "dinoiser",
        f"{_DINOISER}/checkpoints/last.pt",
        "LICENSE of github.com/wysoczanska/clip_dinoiser",
        trunk="clip_vitb16_laion2b",
    ),
)
