"""Records by name in a file of JSON lines: only their places are held in memory, however many there are."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from ovseg.images import BinaryStream
from ovseg.records import Record

#: Names of files that are still being written.
TEMPORARY = ".ovseg-*.tmp"


class RecordFile(MutableMapping[str, Record]):
    """A file with a record a line, each with the `image` that it is of.

    A new record is appended at once. What is replaced or deleted stays in the file until `rewrite`.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}

    def load(self, needs: str = "image") -> None:
        """Finds the complete records. A process that was killed may have left a torn line.

        Args:
            needs: a key that records must have.
        """
        self._places = {}
        with suppress(FileNotFoundError), open(self.path, "rb") as stream:
            offset = 0
            for line in stream:
                with suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict) and isinstance(record.get("image"), str) and needs in record:
                        self._places[record["image"]] = (offset, len(line))
                offset += len(line)

    def __getitem__(self, name: str) -> Record:
        offset, length = self._places[name]
        with open(self.path, "rb") as stream:
            stream.seek(offset)
            return json.loads(stream.read(length))

    def __setitem__(self, name: str, record: Record) -> None:
        line = _line(record)
        with open(self.path, "ab", buffering=0) as stream:
            offset = stream.tell()
            stream.write(line)
        self._places[name] = (offset, len(line))  # not where the disk refused it

    def __delitem__(self, name: str) -> None:
        del self._places[name]

    def clear(self) -> None:
        """Forgets all records; the file stays as it is until `rewrite`."""
        self._places.clear()

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def rewrite(self, order: Iterable[str] | None = None) -> None:
        """The file with nothing but the records, in their order or another.

        Args:
            order: names, those that are no records are passed over; records that it lacks come last.
        """
        names = dict.fromkeys(name for name in (order or ()) if name in self._places)
        names |= dict.fromkeys(self._places)
        places: dict[str, tuple[int, int]] = {}
        with atomic(self.path) as target:
            if names:
                offset = 0
                with open(self.path, "rb") as source:
                    for name in names:
                        start, length = self._places[name]
                        source.seek(start)
                        line = source.read(length)
                        target.write(line if line.endswith(b"\n") else line + b"\n")
                        places[name] = (offset, len(line))
                        offset = target.tell()
        self._places = places


@contextmanager
def atomic(path: Path) -> Iterator[BinaryStream]:
    """A file to write that appears under its name when it is complete, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / TEMPORARY.replace("*", uuid4().hex)
    try:
        with open(temporary, "xb") as stream:
            yield stream
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _line(record: Record) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # a file name that is not valid UTF-8
        return json.dumps(record).encode() + b"\n"
