"""What converters of data sets share: several processes, whole files, an exit status."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from ovseg.errors import OvsegError

#: What a damaged file makes readers raise.
FAULTS = (OvsegError, OSError, SyntaxError, ValueError, KeyError, TypeError, IndexError)


class Converted(NamedTuple):
    """What a converter did.

    Attributes:
        total: files that were asked for.
        problems: what was wrong, a line for each file that failed.
        where: they are now.
    """

    total: int
    problems: list[str]
    where: Path


def convert_all(
    work: Callable[[Any], str | None], items: Sequence[Any], *, jobs: int, name: str
) -> list[str]:
    """Does the work for each item, with a bar on a terminal; a failure leaves the others alone.

    Args:
        work: a module's function (or a `partial` of one); says what was wrong, or None.
        items: what it gets.
        jobs: processes.
        name: for the bar.

    Returns:
        What went wrong.
    """
    with tqdm(total=len(items), desc=name, unit="file", disable=not sys.stderr.isatty()) as bar:
        problems = []
        for problem in _results(partial(_guarded, work), items, min(jobs, len(items))):
            bar.update()
            problems += [problem] if problem else []
        return problems


def _results(work: Callable[[Any], str | None], items: Sequence[Any], jobs: int) -> Iterator[str | None]:
    if jobs <= 1:
        yield from map(work, items)
        return
    done = 0
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for result in pool.map(work, items, chunksize=min(16, -(-len(items) // jobs))):
                done += 1
                yield result
        except BrokenProcessPool:
            yield f"a process ended, {len(items) - done} files are left: the same command with fewer --jobs"


def _guarded(work: Callable[[Any], str | None], item: Any) -> str | None:
    try:
        return work(item)
    except FAULTS as error:
        which = next((each for each in _parts(item) if isinstance(each, str | Path)), item)
        return f"{which}: cannot be converted: {type(error).__name__}: {error}"


def _parts(item: Any) -> tuple[Any, ...]:
    return tuple(item) if isinstance(item, tuple) else (item,)


def part_of(target: Path) -> Path:
    """Where a file is written before it is moved to its place, so that what exists is whole."""
    return target.with_name(f".{target.name}.{os.getpid()}.part")


def write_labels(labels: UInt8[np.ndarray, "h w"], target: Path) -> None:
    """A label image as PNG, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(target)
    Image.fromarray(labels).save(part, format="PNG")
    os.replace(part, target)


def write_text(text: str, target: Path) -> None:
    """A text file, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(target)
    part.write_text(text, encoding="utf-8")
    os.replace(part, target)


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """The option `--jobs`."""
    parser.add_argument(
        *("-j", "--jobs", "--workers"),
        type=_positive,
        default=os.cpu_count() or 1,
        help="processes (default: all cores)",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def make_parser(script: str, description: str, examples: str) -> argparse.ArgumentParser:
    """A converter's parser, with examples and the exit status in its help."""
    return argparse.ArgumentParser(
        prog=script,
        description=description,
        epilog=f"examples:\n{examples}\n"
        "The same command again goes on where it stopped: what exists is left as it is.\n"
        "Exit status: 0 done, 1 some files failed (they are named, the others are done), 2 wrong usage.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_tool(convert: Callable[[], Converted]) -> int:
    """Runs a converter and tells what it did; returns the exit status."""
    try:
        done = convert()
    except OvsegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    for problem in done.problems:
        print(f"error: {problem}", file=sys.stderr)
    failed = f", {len(done.problems)} failed" if done.problems else ""
    print(f"{done.total - len(done.problems)} of {done.total} files in {done.where}{failed}")
    return 1 if done.problems else 0
