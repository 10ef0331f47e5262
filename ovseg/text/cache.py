"""Text embeddings on disk, found again by what they were made of.

One safetensors file holds all queries of one setting (weights, tokenizer, templates). A file that is
damaged, foreign or unreadable counts as absent; a disk that cannot be written to costs time, not the run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "ovseg-text-1"
#: Rows kept per file (with 512 channels, 100 MB); the oldest go first.
MAX_ROWS = 50_000

log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """`$OVSEG_CACHE/text`, else `ovseg/text` in the platform's cache folder."""
    if os.environ.get("OVSEG_CACHE"):
        return Path(os.environ["OVSEG_CACHE"]).expanduser() / "text"
    if sys.platform == "darwin":
        root = Path("~/Library/Caches")
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local")
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return root.expanduser() / "ovseg" / "text"


def content_hash(content: object) -> str:
    """SHA-256 of anything JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class EmbeddingCache:
    """Unit vectors by query hash, in one file.

    Args:
        folder: where cache files lie; None keeps nothing.
        setting: hash of all that the vectors depend on apart from the query.
    """

    def __init__(self, folder: Path | None, setting: str) -> None:
        self.setting = setting
        self.path = None if folder is None else folder / f"{setting[:32]}.safetensors"

    def load(self) -> dict[str, Float[Tensor, " D"]]:
        """All vectors of the setting; none where the file is absent or in doubt."""
        if self.path is None or not self.path.is_file():
            return {}
        try:
            with safe_open(self.path, framework="pt") as stored:
                metadata, matrix = stored.metadata() or {}, stored.get_tensor("embeddings")
            if (metadata.get("format"), metadata.get("setting")) != (FORMAT, self.setting):
                raise ValueError("it belongs to something else")
            keys = json.loads(metadata["queries"])
            if metadata.get("sha256") != _digest(keys, matrix):
                raise ValueError("its checksum is wrong")
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            log.warning("text cache %s is not used and will be replaced: %s", self.path, error)
            return {}
        return dict(zip(keys, matrix, strict=True))

    def add(self, vectors: Mapping[str, Float[Tensor, " D"]]) -> None:
        """Stores vectors next to what is there by now, in one atomic step."""
        if self.path is None or not vectors:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = {**self.load(), **vectors}
            keys = list(kept)[-MAX_ROWS:]
            matrix = torch.stack([kept[key].cpu() for key in keys]).contiguous()
            metadata = {
                "format": FORMAT,
                "setting": self.setting,
                "queries": json.dumps(keys),
                "sha256": _digest(keys, matrix),
            }
            with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=".part-") as part:
                fresh = Path(part) / self.path.name
                save_file({"embeddings": matrix}, fresh, metadata)
                os.replace(fresh, self.path)
        except (OSError, SafetensorError, RuntimeError) as error:
            log.warning("text embeddings could not be cached in %s: %s", self.path, error)


def _digest(keys: object, matrix: Tensor) -> str:
    if matrix.dtype != torch.float32 or matrix.ndim != 2 or not isinstance(keys, list):
        raise ValueError("it does not hold a float32 matrix and a list of queries")
    if len(keys) != len(matrix):
        raise ValueError(f"it names {len(keys)} queries for {len(matrix)} rows")
    return hashlib.sha256(json.dumps(keys).encode() + matrix.numpy().tobytes()).hexdigest()
