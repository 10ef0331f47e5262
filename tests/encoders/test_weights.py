"""The table against open_clip's own, and its page in the docs."""

from __future__ import annotations

import re
from pathlib import Path

import open_clip
import pytest
import timm
from open_clip.pretrained import get_pretrained_cfg, list_pretrained
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ovseg.encoders.weights import (
    CLIP_KINDS,
    DEFAULT,
    OPTIONS,
    PREFERENCE,
    WEIGHTS,
    find_entry,
    find_part,
    markdown_table,
)
from ovseg.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "weights.md"
PUBLISHED = [entry for entry in WEIGHTS.values() if entry.kind in ("clip", "siglip")]
GUIDES = [entry for entry in WEIGHTS.values() if entry.kind not in CLIP_KINDS]


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_entries_say_what_open_clip_says(entry) -> None:
    published = get_pretrained_cfg(entry.architecture, entry.tag)
    assert published["hf_hub"] == f"{entry.repo}/"
    assert published.get("quick_gelu", False) == entry.quick_gelu
    assert published["mean"] == entry.mean
    assert published["std"] == entry.std
    text = open_clip.get_model_config(entry.architecture)["text_cfg"]
    assert ("hf_tokenizer_name" in text) == (entry.kind == "siglip")


@pytest.mark.parametrize("entry", WEIGHTS.values(), ids=lambda entry: entry.name)
def test_entries_are_complete(entry) -> None:
    assert entry.licence
    assert entry.licence_source
    assert entry.files[0].filename.endswith(".safetensors") == (
        entry.kind in CLIP_KINDS or "timm" in entry.repo
    )
    assert entry.kind in OPTIONS
    assert entry.repo or entry.origin or entry.kind == "bundled"
    assert not entry.trunk or entry.trunk in WEIGHTS
    for file in entry.files:
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
    assert entry.revision is None or re.fullmatch("[0-9a-f]{40}", entry.revision)


@pytest.mark.parametrize("entry", GUIDES, ids=lambda entry: entry.name)
def test_guides_say_what_timm_says(entry) -> None:
    assert (entry.mean, entry.std) == (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    if entry.repo.startswith("timm/"):
        published = timm.get_pretrained_cfg(entry.repo.removeprefix("timm/"))
        assert published is not None
        assert published.hf_hub_id == entry.repo
        assert published.architecture == entry.architecture
        assert (published.mean, published.std) == (entry.mean, entry.std)
        assert (published.url or "") == entry.origin
        assert str(published.license).lower() == entry.licence.lower()
    elif entry.kind == "dino":
        assert entry.architecture in timm.list_models()


def test_files_that_are_alike_have_one_name() -> None:
    """torch.hub's folder knows a file by its name alone."""
    names = [entry.origin.rpartition("/")[2] for entry in GUIDES if entry.origin]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dino_vit8", "unknown guide 'dino_vit8'. Did you mean 'dino_vit[bs]8'.* bundled, .*sam_vitb"),
        ("clip_vitb16_openai", "goes with --encoder, here one of these is wanted: bundled, dino_vits16"),
    ],
)
def test_unknown_parts(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_part(name, "dino", "sam")


def test_the_preference_is_of_the_table() -> None:
    assert PREFERENCE[0] == DEFAULT
    assert len(set(PREFERENCE)) == len(PREFERENCE)
    assert set(PREFERENCE) == {entry.name for entry in PUBLISHED if entry.kind == "clip"}


def test_all_pairs_of_open_clip_are_names_too() -> None:
    for architecture, tag in list_pretrained():
        entry = find_entry(f"{architecture}:{tag}")
        assert entry.repo
        assert entry.files
    datacomp = find_entry("ViT-B-16:datacomp_xl_s13b_b90k")
    assert datacomp.repo == WEIGHTS["clip_vitb16_datacomp"].repo
    assert datacomp.licence == "MIT"
    assert find_entry("ViT-B-16:openai").quick_gelu
    assert find_entry("ViT-B-16-quickgelu:openai").quick_gelu
    assert not find_entry("ViT-B-16:laion2b_s34b_b88k").quick_gelu
    assert find_entry("ViT-g-14:laion2b_s34b_b88k").licence == "see model card"
    assert find_entry("ViT-B-16-SigLIP-512:webli").mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clip_vitb16_opanai", "unknown encoder 'clip_vitb16_opanai'. Did you mean 'clip_vitb16_openai'"),
        ("ViT-B-16", "is an architecture: say which weights too, by a tag .ViT-B-16:openai"),
        ("ViT-B-17:openai", "unknown open_clip architecture 'ViT-B-17'. Did you mean 'ViT-B-16'"),
        ("ViT-B-16:openia", "unknown tag for ViT-B-16 'openia'. Did you mean 'openai'"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_entry(name)


def test_docs_hold_the_table() -> None:
    """To renew it: python -m ovseg.encoders.weights, pasted between the marks."""
    page = DOCS.read_text(encoding="utf-8")
    table = page.split("<!-- table: begin -->\n")[1].split("<!-- table: end -->")[0]
    assert table.strip() == markdown_table().strip()
