"""What a folder run tells its user: a progress bar, a table, what failed."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovseg.records import in_words

if TYPE_CHECKING:
    from ovseg.inputs import ImageFile
    from ovseg.runs import Outcome, RunSummary


class Progress:
    """A bar with rate and time left, on a terminal; silent elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.started = False
        self.total = self.finished = self.failed = 0
        self._bar: Any = None

    def start(self, total: int) -> None:
        """Begin to count."""
        self.started, self.total = True, total
        if sys.stderr.isatty() and not self.quiet:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="image", dynamic_ncols=True, smoothing=0.1)

    def note(self, outcome: Outcome) -> None:
        """Count an image."""
        self.finished += not outcome.failed
        self.failed += outcome.failed
        if self._bar is None:
            return
        if outcome.skipped:  # done earlier: not part of the rate
            self._bar.initial += 1
        self._bar.update()
        if self.failed:
            self._bar.set_postfix_str(f"{self.failed} failed", refresh=False)

    def tile(self, image: ImageFile, done: int, total: int) -> None:
        """Show how far a raster is."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"{image.name}: tile {done} of {total}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.close()


def report(summary: RunSummary, total: int, out: Path, folders: list[str], *, quiet: bool = False) -> None:
    """The table of images, where the files are, and what failed."""
    if not quiet:
        print_table(summary, shutil.get_terminal_size((110, 24)).columns)
        more = summary.done + summary.skipped - len(summary.records)
        if more > 0:
            print(f"... and {more} more, see {out / 'results.jsonl'}")
        rate = summary.done / summary.seconds if summary.seconds else 0.0
        earlier = f", {summary.skipped} done earlier" if summary.skipped else ""
        print(f"\n{summary.done} of {total} images in {summary.seconds:.1f} s ({rate:.1f} images/s){earlier}")
        if summary.done + summary.skipped:
            longest = max(map(len, folders), default=0)
            print("\n".join(f"{name:<{longest}}  {out / name}" for name in folders))
    if summary.failed:
        print(
            f"\n{len(summary.failed)} of {total} images failed, see {out / 'errors.jsonl'}:",
            file=sys.stderr,
        )
        for name, reason in summary.failed[:20]:
            print(f"  {name}: {reason}", file=sys.stderr)
        if len(summary.failed) > 20:
            print(f"  ... and {len(summary.failed) - 20} more", file=sys.stderr)
    if summary.hint:
        print(summary.hint, file=sys.stderr)


def print_table(summary: RunSummary, width: int) -> None:
    """A line per image: what was found, and the time it took."""
    rows = [(record["image"], in_words(record), f"{record['seconds']:.2f} s") for record in summary.records]
    if not rows:
        return
    title = "found"
    first = min(max(_width(name) for name, _, _ in rows), max(20, width // 3))
    second = min(max(len(title), *(_width(words) for _, words, _ in rows)), max(20, width - first - 12))
    for name, words_text, seconds in [("image", title, "time"), *rows]:
        print(f"{_fit(name, first, keep_end=True)}  {_fit(words_text, second)}  {seconds:>8}")


def _width(text: str) -> int:
    """Columns of a terminal: East Asian wide letters take two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _fit(text: str, width: int, *, keep_end: bool = False) -> str:
    """Padded or cut to exactly `width` columns; control characters are shown as `?`."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if _width(text) > width:
        while _width(text) > width - 3:
            text = text[1:] if keep_end else text[:-1]
        text = "..." + text if keep_end else text + "..."
    return text + " " * (width - _width(text))
