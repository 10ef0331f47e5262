"""Measured tables in Markdown pages: where they go, and what must be said beside them.

A tool owns the lines between two comments of a page and replaces them as a whole; all else is the author's.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ovseg.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class PageSection:
    """A place in a page that a tool writes.

    Attributes:
        name: of the place.
        tool: which tool writes it, as a reader would call it.
    """

    name: str
    tool: str

    @property
    def begin(self) -> str:
        """The line above."""
        return f"<!-- begin: {self.name} (written by {self.tool}) -->"

    @property
    def end(self) -> str:
        """The line below."""
        return f"<!-- end: {self.name} -->"

    def around(self, path: Path) -> tuple[str, str]:
        """What stands before and after the section, comments included; a new file gets a heading.

        Raises:
            ConfigError: the file has no such place; the message has the two lines to put into it.
        """
        if not path.exists():
            return f"# {self.name.capitalize()}\n\n{self.begin}\n", f"\n{self.end}\n"
        before, begin, rest = path.read_text(encoding="utf-8").partition(self.begin)
        _, end, after = rest.partition(self.end)
        if not begin or not end:
            raise ConfigError(
                f"{path} has no place for the table: put these two lines into it\n{self.begin}\n{self.end}"
            )
        return f"{before}{self.begin}\n", f"\n{self.end}{after}"

    def write(self, path: Path, lines: Sequence[str]) -> None:
        """Replaces what stands between the comments.

        Raises:
            ConfigError: see `around`.
        """
        before, after = self.around(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(before + "\n" + "\n".join(lines) + "\n" + after, encoding="utf-8")


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lines of a table.

    Args:
        heads: of the columns.
        rows: cells.
        left: how many columns are text; the others are figures and stand to the right.
    """
    rule = "|" + "---|" * left + "---:|" * (len(heads) - left)
    return [f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def device_name(device: str | torch.device) -> str:
    """What figures were measured on: the GPU's name, or the CPU with its threads."""
    resolved = torch.device(device)
    if resolved.type == "cuda":
        return torch.cuda.get_device_name(resolved)
    return f"{resolved.type.upper()} (torch threads: {torch.get_num_threads()})"


def commit() -> str:
    """The checkout's commit, and whether tracked files differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
        ).stdout

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "ovseg", "configs", "tools")
        return f"`{git('rev-parse', '--short=12', 'HEAD').strip()}`" + (
            " with local changes" if changed.strip() else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown (no git checkout)"
