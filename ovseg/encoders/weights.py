"""The weights that ovseg knows by name: one table.

Architectures are names of open_clip's model configs, tags those of its pretrained table (3.3). A hash
stands here only where it is known for that very file; files from the Hugging Face cache are checked against
the hash that the hub itself states, so a hash in the table protects against a changed repository.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

from ovseg.errors import ConfigError, unknown_name

Kind = Literal["clip", "siglip", "bundled"]
RGB = tuple[float, float, float]

CLIP_MEAN: RGB = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: RGB = (0.26862954, 0.26130258, 0.27577711)
HALF: RGB = (0.5, 0.5, 0.5)

DEFAULT = "clip_vitb16_openai"
BUNDLED = "bundled"


@dataclass(frozen=True)
class WeightsFile:
    """A file of a repository.

    Attributes:
        filename: its path in the repository.
        sha256: of this file, lower-case hex; None where unknown.
    """

    filename: str
    sha256: str | None = None


SAFETENSORS = WeightsFile("open_clip_model.safetensors")
PICKLE = WeightsFile("open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class WeightsEntry:
    """One trained model.

    Attributes:
        name: how ovseg calls it.
        architecture: open_clip's model config.
        tag: open_clip's tag for the weights; empty where it has none.
        repo: Hugging Face repository; empty for files in the package or named by the user.
        licence: of the weights, an SPDX identifier where there is one.
        licence_source: who says so.
        files: in order of preference; the first that exists is used.
        revision: commit of the repository that was looked at; None follows its main branch.
        quick_gelu: trained with OpenAI's approximation of GELU (cannot be seen from the file).
        mean, std: RGB statistics for values in [0, 1].
        kind: "siglip" needs a Hugging Face tokenizer, and the transformers package to read it.
    """

    name: str
    architecture: str
    tag: str
    repo: str
    licence: str
    licence_source: str = "model card"
    files: tuple[WeightsFile, ...] = (SAFETENSORS, PICKLE)
    revision: str | None = None
    quick_gelu: bool = False
    mean: RGB = CLIP_MEAN
    std: RGB = CLIP_STD
    kind: Kind = "clip"

    @property
    def url(self) -> str:
        """The repository's page."""
        return f"https://huggingface.co/{self.repo}" if self.repo else ""


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

_ENTRIES = (
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
WEIGHTS: dict[str, WeightsEntry] = {entry.name: entry for entry in _ENTRIES}

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
    """The entry for a name of the table, or for an `architecture:tag` pair of open_clip's.

    Raises:
        ConfigError: no such name; the message lists the valid ones and the nearest match.
    """
    if name in WEIGHTS:
        return WEIGHTS[name]
    if ":" in name:
        return _from_open_clip(*name.split(":", 1))
    if is_architecture(name):
        tags = list_pretrained_tags_by_model(name)
        examples = ", ".join(f"{name}:{tag}" for tag in tags[:6]) or "none known to open_clip"
        raise ConfigError(
            f"'{name}' is an architecture: say which weights too, by a tag ({examples}) or a file "
            f"(--weights FILE)"
        )
    raise unknown_name("encoder", name, WEIGHTS)


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
    known = next((each for each in _ENTRIES if each.repo == repo), None)
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
    """The table for docs/weights.md."""
    return "\n".join(_rows()) + "\n"


def _rows() -> Iterator[str]:
    yield "| name | open_clip | source | licence | said by |"
    yield "|---|---|---|---|---|"
    for entry in _ENTRIES:
        model = f"`{entry.architecture}:{entry.tag}`" if entry.tag else "config in the package"
        activation = ", QuickGELU" if entry.quick_gelu else ""
        source = f"[{entry.repo}]({entry.url})" if entry.repo else "in the package"
        licence = f"{entry.licence} | {entry.licence_source}"
        yield f"| `{entry.name}` | {model}{activation} | {source} | {licence} |"


if __name__ == "__main__":
    print(markdown_table(), end="")
