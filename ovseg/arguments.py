"""What the tools' command lines share."""

from __future__ import annotations

import argparse
import ast
import re
import shutil
from collections.abc import Sequence
from typing import Any

from ovseg.errors import ConfigError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Examples as they are written, and defaults where there are any."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(110, shutil.get_terminal_size().columns))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = any(action.default is each for each in (None, False)) or action.default == []
        quiet = unset or "default" in (action.help or "")
        return action.help if quiet else super()._get_help_string(action)


def parse_options(pairs: Sequence[str], option: str = "--opts", *, lower_case: bool = True) -> dict[str, Any]:
    """`KEY=VALUE` with Python values; what is no Python value is text.

    Args:
        pairs: as given.
        option: where, for the message.
        lower_case: `true`, `false` and `none` are values, too; in configs they are text ("none" is a set
            of templates).

    Raises:
        ConfigError: another form.
    """
    names = {"true": True, "false": False, "none": None}
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"{option} takes KEY=VALUE, got '{pair}'")
        try:
            named = lower_case and value.lower() in names
            options[key] = names[value.lower()] if named else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options


def parse_color(text: str, option: str = "--matte") -> tuple[int, int, int]:
    """`#rrggbb` as numbers.

    Raises:
        ConfigError: another form.
    """
    if not re.fullmatch("#?[0-9a-fA-F]{6}", text):
        raise ConfigError(f"{option} is '{text}': expected a colour such as #ffffff")
    digits = text.removeprefix("#")
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)
