"""Weights from the Hugging Face hub: local caches first, a download only when that is allowed."""

from __future__ import annotations

import os
import re
import socket
import urllib.request
from collections.abc import Collection
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import huggingface_hub
import huggingface_hub.constants
import torch.hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ovseg.encoders.checkpoints import verify_sha256
from ovseg.encoders.weights import BUNDLED, CLIP_KINDS, OPTIONS, WEIGHTS, Kind, WeightsEntry
from ovseg.errors import CheckpointError

#: "by hand": on no hub; the user passes a file.
Availability = Literal["bundled", "cached", "download", "by hand"]
#: What an entry is called in messages.
_NOUNS: dict[Kind, str] = {
    "dino": "guide",
    "sam": "SAM",
    "found": "saliency part",
    "dinoiser": "CLIP-DINOiser convolutions",
}


def available(
    cache_dir: Path | None = None, kinds: Collection[Kind] | None = None
) -> list[tuple[WeightsEntry, Availability]]:
    """The entries of the table, of some kinds or all, and whether they need a download."""

    def state(entry: WeightsEntry) -> Availability:
        if entry.kind == "bundled":
            return "bundled"
        if find_cached(entry, cache_dir):
            return "cached"
        return "download" if entry.repo else "by hand"

    return [(entry, state(entry)) for entry in WEIGHTS.values() if kinds is None or entry.kind in kinds]


def find_cached(entry: WeightsEntry, cache_dir: Path | None = None) -> Path | None:
    """The entry's file in the Hugging Face cache, or as the authors' code leaves it in that of torch.hub."""
    for revision in filter(None, (entry.revision, "main")) if entry.repo else ():
        for file in entry.files:
            found = huggingface_hub.try_to_load_from_cache(entry.repo, file.filename, cache_dir, revision)
            if isinstance(found, str):
                return Path(found)
    return _in_torch_hub(entry)


def _in_torch_hub(entry: WeightsEntry) -> Path | None:
    if entry.kind not in ("dino", "sam") or not entry.origin:  # others' file names would fit many files
        return None
    path = Path(torch.hub.get_dir()) / "checkpoints" / entry.origin.rpartition("/")[2]
    return path if path.is_file() else None


def fetch(entry: WeightsEntry, *, offline: bool = False, cache_dir: Path | None = None) -> Path:
    """The entry's file, from a cache or by download with a progress bar; its hash is checked.

    Raises:
        CheckpointError: not there and not to be had, or its hash is wrong.
    """
    path = find_cached(entry, cache_dir)
    if path is None:
        if not entry.repo:
            raise _unavailable(entry, "it is on no hub", cache_dir)
        if offline:
            raise _unavailable(entry, "HF_HUB_OFFLINE or offline=True forbids the network", cache_dir)
        if (host := _unreachable_host()) is not None:
            raise _unavailable(entry, f"{host} cannot be reached from here", cache_dir)
        path = _download(entry, cache_dir)
    known = next((f.sha256 for f in entry.files if Path(f.filename).name == path.name), None)
    if known is not None:
        verify_sha256(path, known, "ovseg's table of weights")
    stated = path.resolve().name  # the cache names a large file by the hash that the hub states for it
    if re.fullmatch("[0-9a-f]{64}", stated):
        verify_sha256(path, stated, f"the Hugging Face cache entry of {entry.repo}")
    return path


def _download(entry: WeightsEntry, cache_dir: Path | None) -> Path:
    absent = ""
    for file in entry.files:
        try:
            found = huggingface_hub.hf_hub_download(
                entry.repo, file.filename, revision=entry.revision, cache_dir=cache_dir
            )
            return Path(found)
        except LocalEntryNotFoundError as error:
            raise _unavailable(entry, reason_of(error), cache_dir) from error
        except EntryNotFoundError as error:  # this repository has no safetensors: try the next form
            absent = reason_of(error)
        except Exception as error:  # gated, renamed, no disk space, no route ...: many types, one meaning
            raise _unavailable(entry, reason_of(error), cache_dir) from error
    raise _unavailable(entry, absent, cache_dir)


def reason_of(error: Exception) -> str:
    """The first line of an error, with its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _unavailable(entry: WeightsEntry, reason: str, cache_dir: Path | None) -> CheckpointError:
    names = " or ".join(file.filename for file in entry.files)
    cache = str(cache_dir or huggingface_hub.constants.HF_HUB_CACHE)
    if entry.origin and entry.kind in ("dino", "sam"):
        cache += f" or {Path(torch.hub.get_dir()) / 'checkpoints'}"
    address = f"{entry.url}/tree/{entry.revision or 'main'}" if entry.repo else entry.origin
    if entry.kind in CLIP_KINDS:
        how = "--weights FILE"
        bundled = "the small bundled model with --encoder bundled"
    else:
        how = f"{OPTIONS[entry.kind]} {entry.name}=FILE"
        bundled = f"the small bundled one with {OPTIONS[entry.kind]} {BUNDLED}"
    return CheckpointError(
        f"no weights for {_NOUNS.get(entry.kind, 'encoder')} '{entry.name}': {names} of "
        f"{entry.repo or urlsplit(entry.origin).hostname} is not in the cache ({cache}) and cannot be "
        f"downloaded ({reason}). Download it from {address} where there is a network and pass it with {how} "
        f"(weights=FILE in Python), or use {bundled} (drawn scenes, no photographs)"
    )


def is_offline() -> bool:
    """HF_HUB_OFFLINE, also when it was set after huggingface_hub was imported."""
    set_now = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return set_now or bool(huggingface_hub.constants.HF_HUB_OFFLINE)


def _unreachable_host() -> str | None:
    """The hub's host if its name does not resolve, which spares half a minute of silent retries."""
    if urllib.request.getproxies():
        return None
    host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return host
    return None
