"""The folder of a run: what was asked for, what is done, what failed. Nothing in it is ever half written.

```
run.json       settings, versions, and a fingerprint of all that changes results
classes.json   label -> name and colour, and the void label
results.jsonl  a line per finished image, appended after its files are in place
timings.jsonl  its seconds, which no two runs share: all else is the same in every run
errors.jsonl   a line per image that failed in the latest run over it
labels/ ...    one folder per kind of output, sub-paths kept
```
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from ovseg.errors import ConfigError
from ovseg.inputs import ImageFile, output_stems
from ovseg.record_file import TEMPORARY, RecordFile, atomic
from ovseg.records import Record

MANIFEST, RESULTS, ERRORS, CLASSES = "run.json", "results.jsonl", "errors.jsonl", "classes.json"
TIMINGS = "timings.jsonl"
LOCK = ".ovseg.lock"
#: Where the parts of a run lie until they are merged.
SHARDS = "shards"
FORMAT = "ovseg run 1"


class RunFolder:
    """A run's folder, opened for writing by one process at a time. Use it in a `with` statement.

    Opening an empty or absent folder begins a run; opening a run with the same settings resumes it.

    Args:
        path: the folder.
        settings: all that changes results, JSON-ready.
        versions: of the software; a change in ovseg's own is a change of settings, others are noted.
        overwrite: where settings differ, or the folder is not a run, go ahead; of what is there, only the
            files that the old run's records name are removed.

    Attributes:
        records: finished images by name.
        timings: `seconds` of these.
        errors: failed images by name, of this and earlier runs.
        notices: what the user should know, a line each.

    Raises:
        ConfigError: other settings, a folder of something else, or another process is writing into it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Mapping[str, Any],
        versions: Mapping[str, str],
        *,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(dict(settings)))
        self.versions = dict(versions)
        self.overwrite = overwrite
        self.fingerprint = fingerprint({**self.settings, "ovseg": self.versions.get("ovseg")})
        self.records = RecordFile(self.path / RESULTS)
        self.errors = RecordFile(self.path / ERRORS)
        self.timings = RecordFile(self.path / TIMINGS)
        self.notices: list[str] = []
        self._lock = FileLock(self.path / LOCK)

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"another process is writing into '{self.path}': wait until it ends, or choose another folder"
            ) from None
        except OSError as error:
            raise ConfigError(f"cannot write into '{self.path}': {error.strerror or error}") from error
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def _open(self) -> None:
        manifest = self._read_manifest()
        if manifest is not None:
            changes = differences(
                {**manifest.get("settings", {}), "ovseg": manifest.get("versions", {}).get("ovseg")},
                {**self.settings, "ovseg": self.versions.get("ovseg")},
            )
            if changes and not self.overwrite:
                raise ConfigError(
                    f"'{self.path}' holds a run with other settings ({'; '.join(changes)}): choose another "
                    f"folder, the old settings, or --overwrite to replace the old results"
                )
        if self.overwrite and (self.path / MANIFEST).exists():
            self._clear()
            manifest = None
        if manifest is None:
            self._write_manifest()
        else:
            changes = differences(manifest.get("versions", {}), self.versions)
            if changes:
                self.notices.append(f"resuming with other software than before: {'; '.join(changes)}")
            self.records.load(needs="stem")
            self.errors.load()
            self.timings.load(needs="seconds")
        self._clear_temporaries()
        self._rewrite()

    def _read_manifest(self) -> Record | None:
        path = self.path / MANIFEST
        try:
            manifest = json.loads(path.read_bytes())
            if not (isinstance(manifest, dict) and manifest.get("format") == FORMAT):
                raise ValueError(f"its format is not '{FORMAT}'")
            return manifest
        except FileNotFoundError:
            names = (each.name for each in self.path.iterdir())
            other = sorted(name for name in names if not name.startswith(".") and name != SHARDS)
            if other and not self.overwrite:
                raise ConfigError(
                    f"'{self.path}' is not empty and not a run of ovseg (it holds {', '.join(other[:3])}"
                    f"{' ...' if len(other) > 3 else ''}): choose another folder, or --overwrite to write "
                    f"into this one; what is there stays"
                ) from None
        except ValueError as error:
            if not self.overwrite:
                raise ConfigError(
                    f"'{path}' cannot be read ({error}): choose another folder, or --overwrite"
                ) from error
        return None

    def _write_manifest(self) -> None:
        manifest = {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "versions": self.versions,
        }
        self.write(MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=True).encode() + b"\n")

    def _clear(self) -> None:
        """Remove the old run's files, and folders that this empties."""
        folders = set()
        self.records.load()
        for record in self.records.values():
            folders |= self._remove_outputs(record)
        self.records.clear()
        for folder in sorted(folders, key=lambda each: len(each.parts), reverse=True):
            while folder != self.path and folder.is_relative_to(self.path):
                with suppress(OSError):
                    folder.rmdir()
                folder = folder.parent
        for name in (MANIFEST, RESULTS, ERRORS, CLASSES, TIMINGS):
            (self.path / name).unlink(missing_ok=True)

    def _remove_outputs(self, record: Record) -> set[Path]:
        folders = set()
        for output in record.get("outputs", {}).values():
            target = self.path / output
            if ".." not in target.parts and target.is_relative_to(self.path):
                target.unlink(missing_ok=True)
                folders.add(target.parent)
        return folders

    def _clear_temporaries(self) -> None:
        for each in self.path.rglob(TEMPORARY):
            each.unlink(missing_ok=True)

    def _rewrite(self, order: Sequence[str] | None = None) -> None:
        for name in [name for name in self.timings if name not in self.records]:
            del self.timings[name]
        for file in (self.records, self.errors, self.timings):
            file.rewrite(order)

    def write(self, name: str, content: bytes) -> None:
        """A whole file, atomically."""
        with atomic(self.path / name) as stream:
            stream.write(content)

    def plan(
        self,
        images: Sequence[ImageFile],
        kinds: Sequence[str],
        all_images: Sequence[ImageFile] | None = None,
    ) -> tuple[list[ImageFile], dict[str, str]]:
        """What is left to do, and the output stem of every image.

        An image is done when its record names an output of every kind, these exist, and the image's size
        in bytes and time of change are as recorded. Images that failed are tried again.

        Args:
            images: of this run.
            kinds: of the outputs.
            all_images: of all shards of the run, whose outputs must not share a name; by default `images`.

        Raises:
            ConfigError: a name belongs to another image of an earlier run into this folder.
        """
        todo = []
        for image in images:
            record = self.records.get(image.name)
            if record is not None and not self._matches(record, image):
                del self.records[image.name]
                self._remove_outputs(record)
                record = None
            if record is None or not all(self._exists(record, kind) for kind in kinds):
                todo.append(image)
            self.errors.pop(image.name, None)
        taken = {name: record["stem"] for name, record in self.records.items()}
        self._rewrite()
        return todo, output_stems((image.name for image in all_images or images), taken)

    def _matches(self, record: Record, image: ImageFile) -> bool:
        source, now = record.get("source", {}), describe_source(image.path)
        if (source.get("bytes"), source.get("modified")) == (now["bytes"], now["modified"]):
            return True
        if source.get("path") != now["path"]:
            raise ConfigError(
                f"'{self.path}' has results for another '{image.name}' ({source.get('path')}) than "
                f"{now['path']}: choose another folder, or give both inputs at once"
            )
        return False

    def _exists(self, record: Record, kind: str) -> bool:
        output = record.get("outputs", {}).get(kind)
        return bool(output) and (self.path / output).is_file()

    def commit(self, record: Record) -> None:
        """Note that an image is done; its outputs are in place."""
        self.errors.pop(record["image"], None)
        old = self.records.get(record["image"])
        if old is not None:  # another kind of output was asked for then; it is still good
            kept = {kind: name for kind, name in old["outputs"].items() if self._exists(old, kind)}
            record["outputs"] = {**kept, **record["outputs"]}
        timing: Record = {key: record[key] for key in ("image", "seconds") if key in record}
        self.records[record["image"]] = {key: value for key, value in record.items() if key != "seconds"}
        if "seconds" in timing:
            self.timings[record["image"]] = timing

    def timed(self, name: str) -> Record:
        """The record of a finished image, with its `seconds`."""
        return self.records[name] | self.timings.get(name, {"seconds": 0.0})

    def fail(self, record: Record) -> None:
        """Note that an image failed. Outputs that it had from an earlier run are removed."""
        old = self.records.pop(record["image"], None)
        if old is not None:
            self._remove_outputs(old)
        self.errors[record["image"]] = record

    def finish(self, images: Sequence[ImageFile]) -> None:
        """Bring the lines into the order of the images."""
        self._rewrite([image.name for image in images])


def fingerprint(settings: Mapping[str, Any]) -> str:
    """The sha256 of settings, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def describe_source(path: Path) -> Record:
    """Where an image was read, and what tells when it changes."""
    try:
        status = os.stat(path)
        return {"path": os.path.abspath(path), "bytes": status.st_size, "modified": status.st_mtime_ns}
    except OSError:
        return {"path": os.path.abspath(path), "bytes": None, "modified": None}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two settings, a phrase each: `method: was sclip, now maskclip`."""
    found = []
    for key in sorted({*old, *new}):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += differences(was, now, f"{prefix}{key}.")
        elif was != now:
            found.append(f"{prefix}{key}: was {_brief(was)}, now {_brief(now)}")
    return found


def _brief(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(each, dict) and "name" in each for each in value):
        value = ", ".join(str(each["name"]) for each in value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
