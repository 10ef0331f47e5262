"""What is asked of an image: as the page's inputs have it, and as the query of a link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

from ovseg.answers import Task
from ovseg.errors import ConfigError, OvsegError, VocabularyError, unknown_name
from ovseg.outputs.palette import Scheme
from ovseg.text.class_files import fold
from ovseg.text.vocabulary import ClassEntry, Vocabulary

#: The page's tabs; the first four are tasks that have an endpoint.
TASK_TABS: tuple[Task, ...] = ("segment", "detect", "count", "anomaly")
TABS = (*TASK_TABS, "features", "compare")
#: Limits on what a stranger may type: each class costs a pass through the text tower per template.
MAX_LETTERS, MAX_CLASSES, MAX_NAME = 6000, 300, 80
BACKGROUND = "background"
_KINDS = {str: "text", float: "a number", bool: "yes or no"}


@dataclass(frozen=True)
class Settings:
    """Everything on the page but the image itself.

    Attributes:
        words: classes, as `dog = puppy | hound, grass`.
        background: words of what is none of the classes, likewise.
        threshold: least probability; 0 is each task's own.
        opacity: of the colours, 0 to 1.
        method, encoder: by name.
        other: the second method of the comparison.
        tab: what is shown.
        colorblind: colours that colour-blind people tell apart.
        example: file name of an example image; empty for one's own.
    """

    words: str = ""
    background: str = ""
    threshold: float = 0.0
    opacity: float = 0.55
    method: str = "proxyclip"
    encoder: str = "bundled"
    other: str = "maskclip"
    tab: str = "segment"
    colorblind: bool = False
    example: str = ""

    def __post_init__(self) -> None:
        for name in ("threshold", "opacity"):
            if not 0 <= getattr(self, name) <= 1:  # not a number is neither
                raise ConfigError(f"{name} is {getattr(self, name):g}: expected 0 to 1")
        for name in ("words", "background"):
            if len(getattr(self, name)) > MAX_LETTERS:
                raise VocabularyError(
                    f"{name}: more than {MAX_LETTERS:,} letters; the page takes shorter lists"
                )
        if self.tab not in TABS:
            raise unknown_name("tab", self.tab, TABS)

    @classmethod
    def from_inputs(cls, **raw: Any) -> Settings:
        """Settings of what a browser or a client sent, which may be anything.

        Raises:
            ConfigError: a value of another type or range.
            VocabularyError: too many words.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            if raw.get(field.name) is None:
                continue
            value, like = raw[field.name], field.default
            if isinstance(like, float) and isinstance(value, int | float):
                value = float(value)
            if type(value) is not type(like):
                raise ConfigError(f"{field.name} is {value!r:.40}: expected {_KINDS[type(like)]}")
            values[field.name] = value
        return cls(**values)

    @classmethod
    def from_query(cls, query: Mapping[str, str], defaults: Settings) -> tuple[Settings, list[str]]:
        """Settings of a link; what is unusable in it stays at its default and is told.

        Args:
            query: parameters of the address.
            defaults: for what the link does not say.
        """
        settings, problems = defaults, []
        for field in fields(cls):
            text = query.get(field.name)
            if text is None:
                continue
            try:
                settings = replace(settings, **{field.name: _parsed(text, getattr(defaults, field.name))})
            except (OvsegError, ValueError) as error:
                problems.append(f"in the link, {field.name}: {error}")
        return settings, problems

    def query(self, defaults: Settings) -> str:
        """The query of a link: what differs from the defaults, words always."""
        said = {
            name: _said(value)
            for name, value in asdict(self).items()
            if name == "words" or value != getattr(defaults, name)
        }
        return urlencode(said)

    @property
    def scheme(self) -> Scheme:
        """Of the colours."""
        return "colorblind" if self.colorblind else "vivid"

    def vocabulary(self) -> Vocabulary:
        """The classes, and last a background class where there are background words.

        Only words are read here, never a file, whatever the text looks like.

        Raises:
            VocabularyError: no words, too many, or unusable ones.
        """
        if not self.words.strip(" ,\n"):
            raise VocabularyError("no words: type what to look for, as in: dog = puppy | hound, grass")
        entries = _entries(self.words)
        if self.background.strip(" ,\n"):
            spoken = {fold(prompt) for each in entries for prompt in each.prompts}
            behind = [prompt for each in _entries(self.background) for prompt in each.prompts]
            free = tuple(prompt for prompt in behind if fold(prompt) not in spoken)
            name = (
                BACKGROUND
                if fold(BACKGROUND) not in {fold(each.name) for each in entries}
                else "none of these"
            )
            if free:
                entries.append(ClassEntry(name, free, background=True))
        if len(entries) > MAX_CLASSES:
            raise VocabularyError(
                f"{len(entries)} classes: the page takes up to {MAX_CLASSES}; tools/infer.py takes any number"
            )
        return Vocabulary(tuple(entries))


def _entries(text: str) -> list[ClassEntry]:
    """`dog = puppy | hound, grass` as classes."""
    entries = []
    for item in text.replace("\n", ",").split(","):
        name, equals, synonyms = (part.strip() for part in item.partition("="))
        if not name and not equals:
            continue  # a spare comma
        if not name:
            raise VocabularyError(f"'{item.strip()}' has no name before '=': write 'dog = puppy | hound'")
        others = tuple(each.strip() for each in synonyms.split("|")) if equals else ()
        if not all(others):
            raise VocabularyError(f"'{name}' has an empty synonym: write 'dog = puppy | hound'")
        for each in (name, *others):
            if len(each) > MAX_NAME:
                raise VocabularyError(
                    f"'{each[:30]}...' has {len(each)} letters: names have up to {MAX_NAME}; commas part them"
                )
        entries.append(ClassEntry(name, (name, *others), background=fold(name) == BACKGROUND))
    return entries


def _said(value: Any) -> str:
    """A value as a link has it."""
    if isinstance(value, bool):
        return str(int(value))
    return f"{value:g}" if isinstance(value, float) else value


def _parsed(text: str, like: Any) -> Any:
    """Text as the type of its default."""
    if isinstance(like, bool):
        return text.lower() in ("1", "true", "yes")
    return float(text) if isinstance(like, float) else text
