"""A run in parts: each process takes every n-th image, into a folder of its own; `merge` makes them one run.

No engine and no talk between processes: a shard is a run like any other, and is resumed alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import ChainMap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ovseg.errors import ConfigError
from ovseg.inputs import ImageFile
from ovseg.run_folder import CLASSES, MANIFEST, SHARDS, RunFolder

SHARD = "shard.json"
#: Where launchers say which process this is, of how many, and which on its machine.
LAUNCHERS = {
    "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`: every `count`-th image, so that large and small ones mix.

    Raises:
        ConfigError: no such part.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.index <= self.count:
            raise ConfigError(f"there is no shard {self.index} of {self.count}: shards are 1/N to N/N")

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"

    def images(self, images: Sequence[ImageFile]) -> list[ImageFile]:
        """Its part of all images."""
        return list(images[self.index - 1 :: self.count])

    def folder(self, out: Path) -> Path:
        """Where it writes."""
        return out / SHARDS / str(self)

    def note(self, folder: RunFolder, images: Sequence[ImageFile]) -> None:
        """Says in the shard's folder which images are its own.

        Raises:
            ConfigError: it was begun with other images.
        """
        content = {"shard": self.index, "of": self.count, "images": [image.name for image in images]}
        path = folder.path / SHARD
        if path.exists() and json.loads(path.read_bytes()) != content and not folder.overwrite:
            raise ConfigError(
                f"'{folder.path}' was begun with other images: shards need the same inputs each time; choose "
                f"another folder, or --overwrite"
            )
        folder.write(SHARD, json.dumps(content, ensure_ascii=True).encode() + b"\n")


def parse_shard(text: str) -> Shard:
    """A shard as users name it, `3/8`.

    Raises:
        ConfigError: another form, or no such part.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not found:
        raise ConfigError(f"--shard is '{text}': expected I/N, as 3/8 for the third of eight")
    return Shard(int(found[1]), int(found[2]))


def launched(launcher: str, environment: Mapping[str, str] | None = None) -> tuple[Shard, int]:
    """The shard of this process, and its number on its machine (its GPU), as a launcher's environment says.

    Raises:
        ConfigError: unknown launcher, or it has not started this process.
    """
    given = os.environ if environment is None else environment
    if launcher not in LAUNCHERS:
        raise ConfigError(f"unknown launcher '{launcher}'. Valid: {', '.join(LAUNCHERS)}")
    rank, size, local = LAUNCHERS[launcher]
    try:
        return Shard(int(given[rank]) + 1, int(given[size])), int(given.get(local, 0))
    except KeyError as error:
        raise ConfigError(
            f"--launcher {launcher} finds no {error.args[0]} in the environment: start the processes by "
            f"{'torchrun' if launcher == 'pytorch' else 'srun'}, or name parts with --shard I/N"
        ) from None


@dataclass(frozen=True)
class Merged:
    """What became of the shards of a run.

    Attributes:
        images: all of them, in the run's order.
        done, failed: how many.
        folder: of the run.
        files: names of the JSON files that each shard has, such as COCO's.
    """

    images: list[ImageFile]
    done: int
    failed: int
    folder: RunFolder
    files: set[str]


def merge(out: Path, *, keep: bool = False, stack: ExitStack) -> Merged:
    """Makes one run of its shards; the result is what a single process would have written.

    Args:
        out: the folder of the run, with the shards below it.
        keep: copy the files and leave the shards as they are; else they are moved and the shards removed.
        stack: closes the folders.

    Raises:
        ConfigError: no shards, one is missing, unfinished, of other settings, or still being written.
    """
    parts = _parts(out)
    manifests = [json.loads((path / MANIFEST).read_bytes()) for path, _ in parts]
    for (path, _), manifest in zip(parts, manifests, strict=True):
        if manifest["fingerprint"] != manifests[0]["fingerprint"]:
            raise ConfigError(f"'{path}' was run with other settings than '{parts[0][0]}'")
    settings, versions = manifests[0]["settings"], manifests[0]["versions"]
    shards = [
        stack.enter_context(RunFolder(path, settings, each["versions"]))
        for (path, _), each in zip(parts, manifests, strict=True)
    ]
    for (path, names), shard in zip(parts, shards, strict=True):
        missing = [name for name in names if name not in shard.records and name not in shard.errors]
        if missing:
            raise ConfigError(
                f"'{path}' is not finished: {len(missing)} of {len(names)} images are missing "
                f"({missing[0]} ...); give its command again"
            )
    whole = stack.enter_context(RunFolder(out, settings, versions))
    transfer = shutil.copy2 if keep else os.replace
    for (_, names), shard in zip(parts, shards, strict=True):
        for name in names:
            if name in shard.records:
                record = shard.records[name]
                for output in record["outputs"].values():
                    (out / output).parent.mkdir(parents=True, exist_ok=True)
                    transfer(shard.path / output, out / output)
                whole.records[name] = record
                if name in shard.timings:
                    whole.timings[name] = shard.timings[name]
            else:
                whole.errors[name] = shard.errors[name]
    for extra in [CLASSES, *(each.name for each in shards[0].path.glob("*.yaml"))]:
        whole.write(extra, (shards[0].path / extra).read_bytes())
    images = _in_order([names for _, names in parts], whole)
    whole.finish(images)
    if not keep:
        stack.callback(shutil.rmtree, out / SHARDS)
    files = {each.name for each in shards[0].path.glob("*.json")}
    return Merged(images, len(whole.records), len(whole.errors), whole, files)


def _parts(out: Path) -> list[tuple[Path, list[str]]]:
    """Folder and image names of each shard, in order."""
    found: dict[int, tuple[Path, list[str]]] = {}
    counts = set()
    for path in sorted((out / SHARDS).glob(f"*/{SHARD}")):
        content = json.loads(path.read_bytes())
        found[content["shard"]] = (path.parent, content["images"])
        counts.add(content["of"])
    if not found:
        raise ConfigError(f"'{out}' has no shards: tools/infer.py --shard I/N -o {out} writes some")
    if len(counts) > 1:
        raise ConfigError(f"'{out}' has shards of different runs: of {', '.join(map(str, sorted(counts)))}")
    (count,) = counts
    missing = [str(index) for index in range(1, count + 1) if index not in found]
    if missing:
        raise ConfigError(f"'{out}' lacks shard {', '.join(missing)} of {count}")
    return [found[index] for index in range(1, count + 1)]


def _in_order(names: Sequence[Sequence[str]], folder: RunFolder) -> list[ImageFile]:
    """The images as they were before they were dealt out."""
    longest = max(map(len, names))
    dealt = (part[row] for row in range(longest) for part in names if row < len(part))
    sources = ChainMap(folder.records, folder.errors)
    return [ImageFile(Path(sources[name]["source"]["path"]), name) for name in dealt]
