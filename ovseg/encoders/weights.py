"""The weights that ovseg knows by name: one table, of CLIPs here and of guides in `guide_weights`.

Architectures of CLIPs are names of open_clip's model configs, tags those of its pretrained table (3.3). A
hash stands here only where it is known for that very file; files from the Hugging Face cache are checked
against the hash that the hub itself states, so a hash in the table protects against a changed repository.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

from ovseg.encoders.guide_weights import GUIDES
from ovseg.encoders.weights_entry import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    PICKLE,
    RGB,
    SAFETENSORS,
    Kind,
    WeightsEntry,
    WeightsFile,
)
from ovseg.errors import ConfigError, unknown_name

__all__ = [
    "BUNDLED",
    "CLIP_KINDS",
    "CLIP_MEAN",
    "CLIP_STD",
    "DEFAULT",
    "HALF",
    "OPTIONS",
    "PICKLE",
    "PREFERENCE",
    "RGB",
    "SAFETENSORS",
    "WEIGHTS",
    "Kind",
    "WeightsEntry",
    "WeightsFile",
    "find_entry",
    "find_part",
    "is_architecture",
    "markdown_table",
]

DEFAULT = "clip_vitb16_openai"
BUNDLED = "bundled"


def _openai(name: str, architecture: str, repo: str) -> WeightsEntry:
    source = "LICENSE of github.com/openai/CLIP (the card of the timm copy says apache-2.0)"
    return WeightsEntry(name, architecture, "openai", repo, "MIT", source, quick_gelu=True)


def _siglip(name: str, architecture: str) -> WeightsEntry:
    repo = f"timm/{architecture}"
    return WeightsEntry(name, architecture, "webli", repo, "Apache-2.0", mean=HALF, std=HALF, kind="siglip")


def _metaclip(name: str, architecture: str, repo: str) -> WeightsEntry:
    return WeightsEntry(name, architecture, "metaclip_fullcc", repo, "CC-BY-NC-4.0", quick_gelu=True)


def _dfn(name: str, architecture: str, tag: str, repo: str) -> WeightsEntry:
    source = "model card (Apple Machine Learning Research Model licence: research only)"
    return WeightsEntry(name, architecture, tag, repo, "apple-amlr", source, quick_gelu=True)


_B32_SHA = "1bd3c7172de5b207ceac554f5ab5266166f3b9baccc9af5989bc801016d080ad"
_H14_SHA = "9a78ef8e8c73fd0df621682e7a8e8eb36c6916cb3c16b291a082ecd52ab79cc4"

_CLIPS = (
    _openai("clip_vitb32_openai", "ViT-B-32", "timm/vit_base_patch32_clip_224.openai"),
    _openai("clip_vitb16_openai", "ViT-B-16", "timm/vit_base_patch16_clip_224.openai"),
    _openai("clip_vitl14_openai", "ViT-L-14", "timm/vit_large_patch14_clip_224.openai"),
    _openai("clip_vitl14_336_openai", "ViT-L-14-336", "timm/vit_large_patch14_clip_336.openai"),
    WeightsEntry(
        "clip_vitb32_laion2b",
        "ViT-B-32",
        "laion2b_s34b_b79k",
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "MIT",
        files=(SAFETENSORS, WeightsFile(PICKLE.filename, _B32_SHA)),
    ),
    WeightsEntry(
        "clip_vitb16_laion2b",
        "ViT-B-16",
        "laion2b_s34b_b88k",
        "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
        "MIT",
        revision="7288da5a0d6f0b51c4a2b27c624837a9236d0112",
    ),
    WeightsEntry(
        "clip_vitl14_laion2b",
        "ViT-L-14",
        "laion2b_s32b_b82k",
        "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
        "MIT",
        mean=HALF,
        std=HALF,
    ),
    WeightsEntry(
        "clip_vith14_laion2b",
        "ViT-H-14",
        "laion2b_s32b_b79k",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "MIT",
        files=(SAFETENSORS, WeightsFile(PICKLE.filename, _H14_SHA)),
    ),
    WeightsEntry(
        "clip_vitb16_datacomp",
        "ViT-B-16",
        "datacomp_xl_s13b_b90k",
        "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
        "MIT",
    ),
    WeightsEntry(
        "clip_vitl14_datacomp",
        "ViT-L-14",
        "datacomp_xl_s13b_b90k",
        "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
        "MIT",
    ),
    _metaclip("clip_vitb16_metaclip", "ViT-B-16", "timm/vit_base_patch16_clip_224.metaclip_2pt5b"),
    _metaclip("clip_vitl14_metaclip", "ViT-L-14", "timm/vit_large_patch14_clip_224.metaclip_2pt5b"),
    _metaclip("clip_vith14_metaclip", "ViT-H-14", "timm/vit_huge_patch14_clip_224.metaclip_2pt5b"),
    _dfn("clip_vitb16_dfn", "ViT-B-16", "dfn2b", "apple/DFN2B-CLIP-ViT-B-16"),
    _dfn("clip_vitl14_dfn", "ViT-L-14", "dfn2b", "apple/DFN2B-CLIP-ViT-L-14"),
    _dfn("clip_vith14_dfn", "ViT-H-14", "dfn5b", "apple/DFN5B-CLIP-ViT-H-14"),
    _siglip("siglip_vitb16", "ViT-B-16-SigLIP"),
    _siglip("siglip_vitb16_256", "ViT-B-16-SigLIP-256"),
    _siglip("siglip_vitb16_384", "ViT-B-16-SigLIP-384"),
    _siglip("siglip_so400m14", "ViT-SO400M-14-SigLIP"),
    _siglip("siglip2_vitb16", "ViT-B-16-SigLIP2"),
    WeightsEntry(
        BUNDLED,
        "clip.json",
        "",
        "",
        "Apache-2.0",
        "trained from scratch by this project, part of the package",
        files=(WeightsFile("clip.safetensors"),),
        kind="bundled",
    ),
)

#: The table.
WEIGHTS: dict[str, WeightsEntry] = {entry.name: entry for entry in (*_CLIPS, *GUIDES)}
#: What has words.
CLIP_KINDS: tuple[Kind, ...] = ("clip", "siglip", "bundled")
#: The option that takes a part of a kind.
OPTIONS: dict[Kind, str] = {
    "clip": "--encoder",
    "siglip": "--encoder",
    "bundled": "--encoder",
    "dino": "--guide",
    "sam": "--sam",
    "found": "--saliency",
    "dinoiser": "--convolutions",
}

#: What `default_encoder` looks for in the cache, best first: ViT-B/16 before larger models, because that is
#: what the training-free methods were published with and several of them lose on larger ones; OpenAI's
#: weights first for the same reason; then by accuracy. SigLIP is left to those who ask for it.
PREFERENCE = (
    "clip_vitb16_openai",
    "clip_vitb16_laion2b",
    "clip_vitb16_datacomp",
    "clip_vitb16_dfn",
    "clip_vitb16_metaclip",
    "clip_vitl14_openai",
    "clip_vitl14_336_openai",
    "clip_vitl14_datacomp",
    "clip_vitl14_laion2b",
    "clip_vitl14_dfn",
    "clip_vitl14_metaclip",
    "clip_vith14_laion2b",
    "clip_vith14_dfn",
    "clip_vith14_metaclip",
    "clip_vitb32_openai",
    "clip_vitb32_laion2b",
)


def find_entry(name: str) -> WeightsEntry:
    """The entry of a CLIP: a name of the table, or an `architecture:tag` pair of open_clip's.

    Raises:
        ConfigError: no such name; the message lists the valid ones and the nearest match.
    """
    if name in WEIGHTS:
        entry = WEIGHTS[name]
        if entry.kind not in CLIP_KINDS:
            raise ConfigError(
                f"'{name}' knows no words, it is no encoder: pass it with {OPTIONS[entry.kind]}"
            )
        return entry
    if ":" in name:
        return _from_open_clip(*name.split(":", 1))
    if is_architecture(name):
        tags = list_pretrained_tags_by_model(name)
        examples = ", ".join(f"{name}:{tag}" for tag in tags[:6]) or "none known to open_clip"
        raise ConfigError(
            f"'{name}' is an architecture: say which weights too, by a tag ({examples}) or a file "
            f"(--weights FILE)"
        )
    raise unknown_name("encoder", name, _names(CLIP_KINDS))


def find_part(name: str, *kinds: Kind) -> WeightsEntry:
    """The entry of a network beside CLIP.

    Args:
        name: of the table.
        kinds: what will do.

    Raises:
        ConfigError: no such name, or it is of another kind; the message lists the valid ones.
    """
    entry = WEIGHTS.get(name)
    if entry is None:
        raise unknown_name("guide" if "dino" in kinds else "part", name, [BUNDLED, *_names(kinds)])
    if entry.kind not in kinds:
        raise ConfigError(
            f"'{name}' goes with {OPTIONS[entry.kind]}, here one of these is wanted: "
            f"{', '.join([BUNDLED, *_names(kinds)])}"
        )
    return entry


def _names(kinds: Collection[Kind]) -> list[str]:
    return [entry.name for entry in WEIGHTS.values() if entry.kind in kinds]


def is_architecture(name: str) -> bool:
    """Whether open_clip has a model config of this name."""
    return ":" not in name and open_clip.get_model_config(name) is not None


def _from_open_clip(architecture: str, tag: str) -> WeightsEntry:
    if not is_architecture(architecture):
        raise unknown_name("open_clip architecture", architecture, open_clip.list_models())
    published = get_pretrained_cfg(architecture, tag)
    if not published:
        raise unknown_name(f"tag for {architecture}", tag, list_pretrained_tags_by_model(architecture))
    if not published.get("hf_hub"):
        raise ConfigError(
            f"open_clip has no Hugging Face repository for '{architecture}:{tag}': download "
            f"{published.get('url') or 'its weights'} and pass --encoder {architecture} --weights FILE"
        )
    repo, filename = os.path.split(published["hf_hub"])
    known = next((each for each in _CLIPS if each.repo == repo), None)
    config = open_clip.get_model_config(architecture)
    return WeightsEntry(
        f"{architecture}:{tag}",
        architecture,
        tag,
        repo,
        known.licence if known else "see model card",
        known.licence_source if known else f"https://huggingface.co/{repo}",
        files=_files(filename) if known is None else known.files,
        revision=known.revision if known else None,
        quick_gelu=bool(published.get("quick_gelu") or config.get("quick_gelu")),
        mean=tuple(published["mean"]),
        std=tuple(published["std"]),
        kind="siglip" if "siglip" in architecture.lower() else "clip",
    )


def _files(filename: str) -> tuple[WeightsFile, ...]:
    if not filename:
        return SAFETENSORS, PICKLE
    if filename == "pytorch_model.bin":  # beside it lies a model.safetensors of the same content
        return WeightsFile("model.safetensors"), WeightsFile(filename)
    return (WeightsFile(filename),)


def markdown_table() -> str:
    """The tables for docs/weights.md."""
    return "\n".join(_rows()) + "\n"


def _rows() -> Iterator[str]:
    yield from (
        "### Encoders",
        "",
        "| name | open_clip | source | licence | said by |",
        "|---|---|---|---|---|",
    )
    for entry in _CLIPS:
        model = f"`{entry.architecture}:{entry.tag}`" if entry.tag else "config in the package"
        activation = ", QuickGELU" if entry.quick_gelu else ""
        yield f"| `{entry.name}` | {model}{activation} | {_source(entry)} | {_licence(entry)} |"
    yield from ("", "### Guides", "", "| name | timm | positions | source | licence | said by |")
    yield "|---|---|---|---|---|---|"
    for entry in GUIDES:
        if entry.kind == "dino":
            positions = "rotary" if "dinov3" in entry.architecture else entry.positions
            row = f"`{entry.name}` | `{entry.architecture}` | {positions}"
            yield f"| {row} | {_source(entry)} | {_licence(entry)} |"
    yield from ("", "### Other parts", "", "| name | option | file | source | licence | said by |")
    yield "|---|---|---|---|---|---|"
    for entry in GUIDES:
        if entry.kind != "dino":
            row = f"`{entry.name}` | `{OPTIONS[entry.kind]}` | `{os.path.basename(entry.files[0].filename)}`"
            yield f"| {row} | {_source(entry)} | {_licence(entry)} |"


def _source(entry: WeightsEntry) -> str:
    if entry.repo:
        return f"[{entry.repo}]({entry.url})"
    return f"[by hand]({entry.origin})" if entry.origin else "in the package"


def _licence(entry: WeightsEntry) -> str:
    return f"{entry.licence} | {entry.licence_source}"


if __name__ == "__main__":
    print(markdown_table(), end="")
