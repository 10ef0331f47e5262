"""Which images a run is about: files, folders, globs and list files, as an ordered list with names."""

from __future__ import annotations

import difflib
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ovseg.errors import ConfigError
from ovseg.images import SUFFIXES

LIST_SUFFIXES = frozenset({".txt", ".lst"})

#: A folder that holds these is the output of a run, not a source of images.
RUN_FILES = frozenset({"run.json", "results.jsonl"})


class ImageFile(NamedTuple):
    """An image and its name.

    Attributes:
        path: where to read it.
        name: its relative path with "/", unique in the run: outputs are named after it.
    """

    path: Path
    name: str


def find_images(inputs: Sequence[str | os.PathLike[str]]) -> list[ImageFile]:
    """The images that the inputs stand for, in the order given and each once.

    An input is a file (read whatever its suffix is), a folder (recursively; hidden files and the outputs
    of earlier runs are skipped, files are chosen by suffix and sorted naturally, so `2.jpg` comes before
    `10.jpg`), a glob (`**` allowed), or a list: a `.txt` or `.lst` file with a path a line, relative to
    the list itself, `#` for comments.

    Names are relative to the folder given, or to the closest folder that holds all the inputs where there
    are several. So sub-paths are kept and two images never get the same name. A file reached twice, also
    through links, is taken once.

    Raises:
        ConfigError: an input does not exist, or there is no image at all.
    """
    roots: list[str] = []
    paths: list[str] = []
    for each in inputs:
        root, found = _expand(os.path.abspath(os.path.expanduser(os.fspath(each))), os.fspath(each))
        roots += root
        paths += found
    unique = {os.path.realpath(path): path for path in reversed(paths)}  # the first of each wins
    chosen = set(unique.values())
    ordered = list(dict.fromkeys(path for path in paths if path in chosen))
    if not ordered:
        given = ", ".join(os.fspath(each) for each in inputs) or "(no input given)"
        raise ConfigError(
            f"no image found in: {given}. Files of a folder are chosen by suffix "
            f"({' '.join(sorted(SUFFIXES))}); name a file itself to have it read whatever its suffix"
        )
    try:
        base = os.path.commonpath(roots)
    except ValueError as error:  # Windows: two drives
        raise ConfigError(f"inputs have no folder in common, run them one by one: {error}") from error
    return [ImageFile(Path(path), Path(path).relative_to(base).as_posix()) for path in ordered]


def output_stems(names: Iterable[str], taken: dict[str, str] | None = None) -> dict[str, str]:
    """How the outputs of each image are called: its name without the suffix, while that is unique.

    Images that would share it (`a.jpg` and `a.png`, or `A.jpg` on file systems that ignore case) keep
    their suffix: `a.jpg` and `a.png`.

    Args:
        names: names of images.
        taken: stems given out earlier, by name; they stay, and nobody else gets them.
    """
    stems = dict(taken or {})
    used = {stem.casefold() for stem in stems.values()}
    new = [name for name in dict.fromkeys(names) if name not in stems]
    sharing = Counter(_without_suffix(name).casefold() for name in new)
    late = []
    for name in new:
        short = _without_suffix(name)
        if sharing[short.casefold()] > 1 or short.casefold() in used:
            late.append(name)
        else:
            stems[name] = short
            used.add(short.casefold())
    for name in late:
        candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        stems[name] = next(each for each in candidates if each.casefold() not in used)
        used.add(stems[name].casefold())
    return stems


def natural_key(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sorts numbers by value, `img2` before `img10`, and ignores case."""
    parts = re.split(r"([0-9]+)", text)
    numbers = [
        (0, int(part), "") if index % 2 else (1, 0, part.casefold()) for index, part in enumerate(parts)
    ]
    return numbers, text


def _without_suffix(name: str) -> str:
    folder, _, last = name.rpartition("/")
    stem = Path(last).stem
    return f"{folder}/{stem}" if folder else stem


def _expand(path: str, given: str) -> tuple[list[str], list[str]]:
    """What one input stands for: folders that names are relative to, and files."""
    if os.path.isdir(path):
        return [path], list(_walk(path))
    if os.path.exists(path):
        if Path(path).suffix.lower() in LIST_SUFFIXES:
            return _read_list(path)
        return [os.path.dirname(path)], [path]
    if glob.has_magic(path):
        fixed = path
        while glob.has_magic(fixed):
            fixed = os.path.dirname(fixed)
        found = [each for each in glob.glob(path, recursive=True) if os.path.isfile(each)]
        found.sort(key=lambda each: natural_key(os.path.relpath(each, fixed)))
        named = [each for each in found if Path(each).suffix.lower() in SUFFIXES]
        return [fixed], named if "*" in Path(path).suffix or not Path(path).suffix else found
    folder = os.path.dirname(path)
    near = difflib.get_close_matches(os.path.basename(path), _listdir(folder), n=1)
    hint = f" Did you mean '{os.path.join(os.path.dirname(given), near[0])}'?" if near else ""
    raise ConfigError(f"no such file or folder: '{given}'.{hint}")


def _listdir(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _walk(root: str) -> Iterator[str]:
    """Images below a folder; linked folders are followed, each real folder is entered once."""
    entered: set[str] = set()
    stack = [root]
    while stack:
        folder = stack.pop()
        real = os.path.realpath(folder)
        if real in entered:
            continue
        entered.add(real)
        names = sorted((name for name in _listdir(folder) if not name.startswith(".")), key=natural_key)
        if folder != root and set(names) >= RUN_FILES:
            continue
        paths = [os.path.join(folder, name) for name in names]
        folders = [path for path in paths if os.path.isdir(path)]
        yield from (
            path for path in paths if Path(path).suffix.lower() in SUFFIXES and not os.path.isdir(path)
        )
        stack += reversed(folders)


def _read_list(path: str) -> tuple[list[str], list[str]]:
    """Files of a list. A missing one is kept: it is reported as an image that cannot be read."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
            entries = [line.strip("\r\n") for line in lines]
    except OSError as error:
        raise ConfigError(f"cannot read the list '{path}': {error.strerror}") from error
    folder = os.path.dirname(path)
    files = []
    for entry in entries:
        if not entry.strip() or (entry.startswith("#") and not os.path.exists(os.path.join(folder, entry))):
            continue
        files.append(os.path.abspath(os.path.join(folder, os.path.expanduser(entry))))
    return [os.path.dirname(each) for each in files], files
