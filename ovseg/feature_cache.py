"""Features on disk: encode a folder once, ask it with other words later without any image tower.

A file for each image, in safetensors. Its name says the image and the settings, and so does its content:
what does not agree with both is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from jaxtyping import Int, UInt8
from safetensors.torch import save
from torch import Tensor

from ovseg.errors import CacheError, ConfigError
from ovseg.resampling import Resampling
from ovseg.sam_structures import SamImage
from ovseg.structures import DenseFeatures, Pictures

FORMAT = "ovseg features 1"
SUFFIX = ".features.safetensors"
DTYPES = {"float16": torch.float16, "float32": torch.float32}


def image_key(image: UInt8[np.ndarray, "H W 3"], regions: Int[np.ndarray, "H W"] | None = None) -> str:
    """The sha256 of the pixels (and of the regions that came with them), hex."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    if regions is not None:
        digest.update(np.ascontiguousarray(regions, dtype=np.int32).data)
    return digest.hexdigest()


class FeatureCache:
    """A folder of features, each of one image.

    Args:
        folder: made where it is missing.
        settings: all that changes features (method, options, encoder, hashes of weights), JSON-ready.
        dtype: "float16" or "float32", of what is stored.

    Attributes:
        refused: files that were not used, with the reason; they are written anew.

    Raises:
        ConfigError: an unknown dtype, or `folder` is a file.
    """

    def __init__(
        self, folder: str | os.PathLike[str], settings: Mapping[str, Any], *, dtype: str = "float16"
    ) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"the feature cache '{folder}' is a file: name a folder")
        if dtype not in DTYPES:
            raise ConfigError(f"features are stored as {' or '.join(DTYPES)}, not '{dtype}'")
        self.settings = {"format": FORMAT, "dtype": dtype, **settings}
        self.dtype = DTYPES[dtype]
        content = json.dumps(self.settings, sort_keys=True).encode()
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.refused: list[str] = []

    def path(self, key: str) -> Path:
        """Where the features of an image are (see `image_key`)."""
        return self.folder / f"{key[:32]}-{self.fingerprint[:16]}{SUFFIX}"

    def load(self, key: str) -> DenseFeatures | None:
        """An image's features, on the CPU, without its picture; None where there are none to be used."""
        path = self.path(key)
        try:
            return load_features(path, key, self.settings)
        except FileNotFoundError:
            return None
        except CacheError as error:
            self.refused.append(str(error))
            return None

    def save(self, key: str, features: DenseFeatures) -> DenseFeatures:
        """Writes the features of one image; a file appears whole or not at all.

        Returns:
            What `load` will give, rounded as it is stored: a run with a cold cache and one with a warm cache
            have the same results.
        """
        path = self.path(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        content = save(_tensors(features, self.dtype), metadata=_metadata(features, key, self.settings))
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return load_features(path, key, self.settings)


def load_features(path: Path, key: str, settings: Mapping[str, Any]) -> DenseFeatures:
    """Features from a file, if they are of this image and these settings.

    Args:
        path: the file.
        key: of the image, see `image_key`.
        settings: what the features must have been made with.

    Returns:
        Float32, on the CPU; regions are there where the method found some, pictures are not.

    Raises:
        CacheError: damaged, of another image, or made by other settings; the message says which.
        FileNotFoundError: no such file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (safetensors.SafetensorError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise CacheError(f"{path} is damaged ({error})") from error
    if metadata.get("format") != FORMAT:
        raise CacheError(f"{path} holds no features of ovseg")
    if metadata["image"] != key:
        raise CacheError(f"{path} holds the features of another image")
    made_with = json.loads(metadata["settings"])
    wanted = json.loads(json.dumps(settings))
    if made_with != wanted:
        other = sorted(k for k in {*made_with, *wanted} if made_with.get(k) != wanted.get(k))
        raise CacheError(f"{path} was made with other settings ({', '.join(other)})")
    return _features(tensors, json.loads(metadata["sizes"]))


def _tensors(features: DenseFeatures, dtype: torch.dtype) -> dict[str, Tensor]:
    regions = features.pictures.regions if features.pictures is not None else ()
    found = {
        "grid": features.grid.to(dtype),
        "rows": features.resampling.rows,
        "cols": features.resampling.cols,
        "image": features.image,
        "objectness": None if features.objectness is None else features.objectness.to(dtype),
        "regions": torch.from_numpy(np.stack(regions)).int() if regions else None,
        "sam": None if features.sam is None else features.sam.embedding.to(dtype),
    }
    return {name: each.detach().cpu().contiguous() for name, each in found.items() if each is not None}


def _metadata(features: DenseFeatures, key: str, settings: Mapping[str, Any]) -> dict[str, str]:
    sam = features.sam
    sizes = {} if sam is None else {"input_hw": sam.input_hw, "image_hw": sam.image_hw}
    return {
        "format": FORMAT,
        "image": key,
        "settings": json.dumps(settings, sort_keys=True),
        "sizes": json.dumps(sizes),
    }


def _features(tensors: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> DenseFeatures:
    objectness, regions, sam = (tensors.get(each) for each in ("objectness", "regions", "sam"))
    grid = tensors["grid"].float()
    pictures = None
    if regions is not None:
        blank = torch.zeros(len(grid), 3, 1, 1)
        pictures = Pictures(blank, (), tuple(regions.numpy()))
    return DenseFeatures(
        grid,
        Resampling(tensors["rows"], tensors["cols"]),
        tensors.get("image"),
        None if objectness is None else objectness.float(),
        pictures,
        None if sam is None else SamImage(sam.float(), tuple(sizes["input_hw"]), tuple(sizes["image_hw"])),
    )
