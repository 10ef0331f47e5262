"""Ray Data: a callable class for `map_batches`, and a folder run on it with results in parquet.

```python
import ray
from ovseg.engines.ray import Segmenter

rows = ray.data.read_binary_files("s3://bucket/photos", include_paths=True)
rows = rows.map_batches(
    Segmenter,
    fn_constructor_kwargs=dict(method="proxyclip", classes="cat, dog", device="cuda"),
    batch_size=16, num_gpus=1, concurrency=4,
)
rows.write_parquet("s3://bucket/results")
```
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ovseg.batch import BatchPredictor
from ovseg.engines import make_predict_batch
from ovseg.errors import ConfigError, MissingDependencyError
from ovseg.images import SUFFIXES
from ovseg.inputs import natural_key, output_stems
from ovseg.record_file import atomic
from ovseg.run_folder import LOCK

#: Where rows lie below a run's folder.
ROWS = "rows"
#: The part of a CPU that an actor asks for: readers need some, too, and on two cores whole ones starve them.
CPUS_OF_ACTOR = 0.5
#: Rows are written after this time at the latest.
SECONDS = 60


class Segmenter:
    """What an actor is: a `BatchPredictor` whose model is loaded once.

    Args:
        out: a folder that all workers see, for files of results; None leaves their bytes in the rows.
        config: of `ovseg.engines.make_predict_batch`.
    """

    def __init__(self, out: str | None = None, threads: int | None = None, **config: Any) -> None:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        self.predict: BatchPredictor = make_predict_batch(**config)
        self.out = None if out is None else Path(out)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See `BatchPredictor`. With `out`, files go by each row's `stem`, and `outputs` names them."""
        found = self.predict(batch)
        if self.out is None:
            return found
        outputs: list[str] = []
        for index, stem in enumerate(found["stem"]):
            names = {}
            for writer in self.predict.writers:
                if not found["error"][index]:
                    names[writer.kind] = f"{writer.folder}/{stem}{writer.suffix}"
                    with atomic(self.out / names[writer.kind]) as stream:
                        stream.write(found[writer.kind][index])
            outputs.append(json.dumps(names, ensure_ascii=False))
        for writer in self.predict.writers:
            del found[writer.kind]
        return found | {"outputs": np.array(outputs, dtype=object)}


def find_files(uri: str) -> list[dict[str, str]]:
    """The images below a folder or URI, as rows with `uri`, `image` (name) and `stem` of the outputs.

    Args:
        uri: a local folder or file, or what pyarrow's file systems read: `s3://`, `gs://`, `hdfs://`.

    Raises:
        ConfigError: nothing there, or no image.
    """
    from pyarrow import ArrowInvalid, fs

    try:
        system, path = fs.FileSystem.from_uri(uri if "://" in uri else Path(uri).resolve().as_uri())
        top = system.get_file_info(path)
        infos = [top]
        if top.type == fs.FileType.Directory:
            infos = system.get_file_info(fs.FileSelector(path, recursive=True))
    except (ArrowInvalid, OSError) as error:
        raise ConfigError(f"'{uri}' cannot be read: {error}") from error
    files = [each.path for each in infos if each.type == fs.FileType.File]
    chosen = [each for each in files if PurePosixPath(each).suffix.lower() in SUFFIXES]
    base = PurePosixPath(path if top.type == fs.FileType.Directory else str(PurePosixPath(path).parent))
    names = {
        str(PurePosixPath(each).relative_to(base)): each
        for each in chosen
        if not any(part.startswith(".") for part in PurePosixPath(each).relative_to(base).parts)
    }
    if not names:
        raise ConfigError(f"no image found in: {uri}")
    ordered = sorted(names, key=natural_key)
    stems = output_stems(ordered)
    prefix = uri.partition("://")[0] + "://" if "://" in uri and not uri.startswith("file://") else ""
    return [{"uri": prefix + names[name], "image": name, "stem": stems[name]} for name in ordered]


def read_bytes(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the encoded image; b"" where it cannot be read, which the predictor reports."""
    from pyarrow import fs

    uri = row["uri"]
    try:
        system, path = fs.FileSystem.from_uri(uri if "://" in uri else Path(uri).as_uri())
        with system.open_input_stream(path) as stream:
            return {**row, "bytes": stream.read()}
    except OSError:
        return {**row, "bytes": b""}


def done_images(out: Path) -> set[str]:
    """Images with a good row of earlier runs into this folder; all other rows are removed.

    Those are of images that failed, which are tried again, so that no image has two rows in the end.
    """
    import pyarrow as pa
    from pyarrow import parquet as pq

    found: set[str] = set()
    for path in sorted((out / ROWS).glob("*.parquet")):
        try:
            table = pq.read_table(path)
            names, errors = table["image"].to_pylist(), table["error"].to_pylist()
        except (pa.ArrowException, OSError, KeyError):  # nothing of it can be kept
            names, errors = [], []
        good = [not error and name not in found for name, error in zip(names, errors, strict=True)]
        if not any(good):
            path.unlink()
        elif not all(good):
            _write(path, table.filter(pa.array(good)))
        found.update(itertools.compress(names, good))
    return found


def run(
    uri: str,
    out: Path,
    config: Mapping[str, Any],
    *,
    workers: int = 2,
    batch_size: int = 4,
    num_cpus: float = CPUS_OF_ACTOR,
    num_gpus: float = 0,
    rows_per_file: int = 256,
    on_rows: Any = None,
) -> tuple[int, int, list[tuple[str, str]]]:
    """Asks all images below a URI that have no good row yet.

    Args:
        uri: see `find_files`.
        out: folder of the results, seen by all workers.
        config: of `make_predict_batch`, JSON-ready. A folder that was begun with another is refused.
        workers: actors.
        batch_size: images at a time.
        num_cpus, num_gpus: of each actor.
        rows_per_file: rows that are written together, or fewer each minute. These and what workers hold are
            done again after a kill; a block of so many comes back from a worker at once.
        on_rows: called with the number of rows, as they are written.

    Returns:
        How many were done now and how many earlier, and name and reason of those that failed.

    Raises:
        ConfigError: another config, no image, or another process is writing into the folder.
        MissingDependencyError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("Ray is not installed: pip install 'ovseg[ray]'") from error
    with _locked(out):
        _check_config(out, config)
        files = find_files(uri)
        earlier = done_images(out)
        todo = [row for row in files if row["image"] not in earlier]
        failed: list[tuple[str, str]] = []
        if todo:
            constructor = {**config, "out": str(out.absolute())}
            if num_gpus == 0:
                constructor["threads"] = 1
            size = min(rows_per_file, math.ceil(len(todo) / (4 * workers)))
            rows = (
                ray.data.from_items(todo, override_num_blocks=math.ceil(len(todo) / size))
                .map(read_bytes, num_cpus=0.25)
                .map_batches(
                    Segmenter,
                    fn_constructor_kwargs=constructor,
                    batch_size=batch_size,
                    num_cpus=num_cpus,
                    num_gpus=num_gpus,
                    concurrency=workers,
                )
            )
            for number, table in enumerate(_tables(rows, rows_per_file), _next_number(out)):
                _write_rows(out, number, table)
                failed += [(row["image"], row["error"]) for row in table if row["error"]]
                if on_rows is not None:
                    on_rows(len(table))
    return len(todo) - len(failed), len(files) - len(todo), failed


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One driver at a time: two would make every row twice."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / LOCK, timeout=0):
            yield
    except Timeout:
        raise ConfigError(
            f"another process is writing into '{out}': wait until it ends, or choose another folder"
        ) from None


def _tables(rows: Any, size: int) -> Iterator[list[dict[str, Any]]]:
    """Rows in tables of a size, or of what came within `SECONDS`; what came before an error, too."""
    held: list[dict[str, Any]] = []
    begin = time.monotonic()
    try:
        for row in rows.iter_rows():
            held.append(row)
            if len(held) >= size or time.monotonic() - begin > SECONDS:
                yield held
                held, begin = [], time.monotonic()
    except (Exception, KeyboardInterrupt):
        if held:
            yield held
        raise
    if held:
        yield held


def _next_number(out: Path) -> int:
    """Of the next file: after the last one, since earlier ones may be gone."""
    numbers = [int(path.stem.removeprefix("rows-")) for path in (out / ROWS).glob("rows-*.parquet")]
    return max(numbers, default=-1) + 1


def _write_rows(out: Path, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow as pa

    _write(out / ROWS / f"rows-{number:06}.parquet", pa.Table.from_pylist([dict(row) for row in rows]))


def _write(path: Path, table: Any) -> None:
    """A parquet file that appears whole."""
    from pyarrow import parquet as pq

    with atomic(path) as stream:
        pq.write_table(table, stream)


def _check_config(out: Path, config: Mapping[str, Any]) -> None:
    path = out / "config.json"
    content = json.loads(json.dumps(dict(config)))
    if path.exists():
        before = json.loads(path.read_bytes())
        if before != content:
            other = sorted(k for k in {*before, *content} if before.get(k) != content.get(k))
            raise ConfigError(
                f"'{out}' was begun with another {', '.join(other)}: choose another folder, or the old one"
            )
    elif out.exists() and any(not each.name.startswith(".") for each in out.iterdir()):
        raise ConfigError(f"'{out}' is not empty and no run of infer_ray.py: choose another folder")
    with atomic(path) as stream:
        stream.write(json.dumps(content, indent=2).encode() + b"\n")
