"""Example images with words that go with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ovseg.demo.settings import TABS
from ovseg.errors import ConfigError


@dataclass(frozen=True)
class Example:
    """An image and what to ask of it.

    Attributes:
        path: of the image.
        words, background, tab: see `ovseg.demo.settings.Settings`.
    """

    path: Path
    words: str
    background: str = ""
    tab: str = "segment"

    @property
    def title(self) -> str:
        """As the gallery shows it."""
        return self.path.stem.replace("_", " ")


def read_examples(file: Path) -> list[Example]:
    """Examples of a JSON list of objects with `image`, `words` and, where wanted, `background` and `tab`.

    Args:
        file: image paths in it are relative to its folder.

    Raises:
        ConfigError: unreadable, not of that form, or an image is not there.
    """
    try:
        found = [
            Example(
                file.parent / each["image"],
                each["words"],
                each.get("background", ""),
                each.get("tab", TABS[0]),
            )
            for each in json.loads(file.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file}: examples are a JSON list of objects with 'image' and 'words' "
            f"({type(error).__name__}: {error})"
        ) from error
    for each in found:
        if each.tab not in TABS or not each.path.is_file():
            raise ConfigError(
                f"{file}: '{each.path.name}' is no file there, or '{each.tab}' no tab of {TABS}"
            )
    return found


def copied(examples: Sequence[Example], folder: Path) -> list[Example]:
    """The examples with their images in a folder that the page may read."""
    folder.mkdir(parents=True, exist_ok=True)
    return [replace(each, path=Path(shutil.copy(each.path, folder / each.path.name))) for each in examples]
