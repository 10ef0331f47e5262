"""What the user asks for: classes, and the prompts that speak for each."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ovseg.errors import VocabularyError
from ovseg.text.class_files import (
    FILE_SUFFIXES,
    Document,
    fold,
    load_shipped,
    nearest,
    parse_document,
    parse_inline,
    read_file,
    shipped_names,
)

#: What a file may say about a class.
ENTRY_KEYS = ("prompts", "synonyms", "descriptions", "background", "threshold", "color", "thing")

#: Anything that `Vocabulary.parse` understands.
VocabularySpec: TypeAlias = "Vocabulary | str | Path | Mapping[str, object] | Iterable[str | ClassEntry]"


class Query(NamedTuple):
    """One text that speaks for a class; a description is encoded as it stands, without templates."""

    class_index: int
    text: str
    is_description: bool


@dataclass(frozen=True)
class ClassEntry:
    """A class and what is known of it. Spaces are tidied; a prompt that comes twice counts once.

    Attributes:
        name: how the class is called in results.
        prompts: the names that are put into the templates, by default the class's own.
        descriptions: whole sentences, further queries.
        background: whether this is a background class.
        threshold: least probability in [0, 1] for this class, or None for the head's own.
        color: red, green, blue in 0..255, or None for the palette's choice.
        thing: True for countable things, False for stuff, None where not known.
    """

    name: str
    prompts: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    background: bool = False
    threshold: float | None = None
    color: tuple[int, int, int] | None = None
    thing: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise VocabularyError(f"a class name must be text that is not empty, got {self.name!r}")
        checked = {key: check(getattr(self, key), key, self.name) for key, check in _CHECKS.items()}
        for key, value in {"name": " ".join(self.name.split()), **checked}.items():
            object.__setattr__(self, key, value)  # the class is frozen
        if not self.prompts:
            object.__setattr__(self, "prompts", (self.name,))

    def to_dict(self) -> dict[str, object]:
        """JSON-ready; what is at its default is left out."""
        found: dict[str, object] = {"name": self.name}
        if self.prompts != (self.name,):
            found["prompts"] = list(self.prompts)
        if self.descriptions:
            found["descriptions"] = list(self.descriptions)
        if self.background or fold(self.name) == "background":
            found["background"] = self.background
        if self.threshold is not None:
            found["threshold"] = self.threshold
        if self.color is not None:
            found["color"] = list(self.color)
        if self.thing is not None:
            found["thing"] = self.thing
        return found


@dataclass(frozen=True)
class Vocabulary:
    """The classes of a run, in the order of their labels.

    Attributes:
        classes: at least one; no two of the same name.
        name: how the list is called, for manifests.
        shared_prompts: whether two classes may have the same prompt. By default they may not, since at
            a tie only one of the two could ever win; some published lists do it all the same.
        prototypes: what examples of some classes add to their words (`ovseg.prototypes.VisualPrototypes`,
            made by tools/fit.py), or None.

    Raises:
        VocabularyError: no class, a class twice, or a prompt in two classes.
    """

    classes: tuple[ClassEntry, ...]
    name: str = ""
    shared_prompts: bool = False
    prototypes: Any = None  # by its name it would import torch here

    def __post_init__(self) -> None:
        if not self.classes:
            raise VocabularyError(
                "the vocabulary is empty: name at least one class ('cat, dog, grass') or "
                f"{_describe_shipped()}"
            )
        by_name: dict[str, ClassEntry] = {}
        by_prompt: dict[str, ClassEntry] = {}
        for number, entry in enumerate(self.classes, start=1):
            twin = by_name.setdefault(fold(entry.name), entry)
            if twin is not entry:
                raise VocabularyError(
                    f"class '{entry.name}' comes twice (numbers {self.classes.index(twin) + 1}, "
                    f"'{twin.name}', and {number}): remove one; case and spaces do not tell names apart"
                )
            for text in () if self.shared_prompts else entry.prompts + entry.descriptions:
                other = by_prompt.setdefault(fold(text), entry)
                if other is not entry:
                    raise VocabularyError(
                        f"'{text}' speaks for two classes, '{other.name}' and '{entry.name}', which would "
                        "tie wherever it fits: remove it from one"
                    )

    @classmethod
    def parse(cls, spec: VocabularySpec) -> Vocabulary:
        """A vocabulary from whatever names one.

        Args:
            spec: an inline list (`"cat, dog = puppy | hound"`), the name of a shipped list (`"ade150"`),
                a `.txt`, `.json`, `.yaml` or `.safetensors` file, a mapping of class to details as in such a
                file, a sequence of names or `ClassEntry`, or a vocabulary, which is handed back.

        Raises:
            VocabularyError: it names none; the message says what to change.
        """
        if isinstance(spec, Vocabulary):
            return spec
        if isinstance(spec, Path):
            return _build(read_file(spec.expanduser()))
        if isinstance(spec, str):
            return _build(_find_document(spec))
        if isinstance(spec, Mapping):
            return _build(parse_document(spec))
        if not isinstance(spec, Iterable):
            raise VocabularyError(
                f"classes must be text, a file, a sequence or a mapping, got {type(spec).__name__}"
            )
        entries = []
        for item in spec:
            entry = [item] if isinstance(item, ClassEntry) else _build_entries(parse_document([item]))
            entries.extend(entry)
        return cls(tuple(entries))

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Vocabulary:
        """The inverse of `to_dict`."""
        return cls.parse(data)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready, for manifests; `parse` reads it back.

        Of prototypes it has a description and a hash: without their numbers (`save`) it cannot be read back.
        """
        found: dict[str, object] = {"name": self.name} if self.name else {}
        if self.shared_prompts:
            found["shared_prompts"] = True
        found["classes"] = [entry.to_dict() for entry in self.classes]
        if self.prototypes is not None:
            found["prototypes"] = self.prototypes.describe()
        return found

    def save(self, path: Path) -> None:
        """Writes a file that `parse` reads: `.json`, or `.safetensors` where there are prototypes.

        Raises:
            VocabularyError: another ending, or a `.safetensors` of words alone.
        """
        content = self.to_dict()
        if path.suffix == ".safetensors" and self.prototypes is not None:
            from safetensors.torch import save_file

            fresh = path.with_name(path.name + ".part")
            save_file(self.prototypes.tensors, fresh, {"format": "pt", "vocabulary": json.dumps(content)})
            fresh.chmod(0o644)  # safetensors writes for the owner alone
            fresh.replace(path)
        elif path.suffix == ".json":
            if self.prototypes is not None:
                content["prototypes"] = self.prototypes.to_json()
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        else:
            raise VocabularyError(
                f"{path}: a vocabulary is written as .json, or as .safetensors where it has visual prototypes"
            )

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """The class names, in label order."""
        return tuple(entry.name for entry in self.classes)

    @property
    def queries(self) -> list[Query]:
        """Every text to encode, class by class: prompts first, then descriptions."""
        return [
            Query(index, text, is_description)
            for index, entry in enumerate(self.classes)
            for texts, is_description in ((entry.prompts, False), (entry.descriptions, True))
            for text in texts
        ]

    @property
    def background(self) -> frozenset[int]:
        """Which classes are background."""
        return frozenset(index for index, entry in enumerate(self.classes) if entry.background)

    @property
    def thresholds(self) -> tuple[float | None, ...] | None:
        """Least probability per class, or None where no class has its own."""
        found = tuple(entry.threshold for entry in self.classes)
        return found if any(each is not None for each in found) else None

    @property
    def colors(self) -> tuple[tuple[int, int, int] | None, ...]:
        """The colour of each class, None where the palette may choose."""
        return tuple(entry.color for entry in self.classes)

    def fingerprint(self) -> str:
        """Hash of everything that can change a result or a picture; the list's own name does not."""
        content = json.dumps([entry.to_dict() for entry in self.classes], sort_keys=True)
        if self.prototypes is not None:
            content += self.prototypes.sha256
        return hashlib.sha256(content.encode()).hexdigest()


def _find_document(spec: str) -> Document:
    """What a string names: a file, a shipped list, or classes."""
    text = spec.strip()
    looks_like_path = text.lower().endswith(FILE_SUFFIXES) or text.startswith(("/", "./", "../", "~/"))
    if looks_like_path and "\n" not in text:
        return read_file(Path(text).expanduser())
    if text in shipped_names():
        return load_shipped(text)
    if _looks_like_list_name(text):
        near = nearest(text, shipped_names())
        raise VocabularyError(
            f"'{text}' is neither a class list nor likely a class.{near} Name "
            f"{_describe_shipped()}; if it is a class, write '{text},' with a comma"
        )
    return parse_inline(text)


def _looks_like_list_name(text: str) -> bool:
    """Whether a lone word is rather a misspelt list than a class: `voc`, `ade_150`, `cityscape`."""
    if not re.fullmatch(r"[A-Za-z][\w-]*", text, re.ASCII):
        return False
    lower = text.lower()
    if any(name == lower or re.match(re.escape(lower) + r"[\d_]", name) for name in shipped_names()):
        return True
    near = bool(nearest(text, shipped_names()))
    return near and (bool(re.search(r"[\d_-]", text)) or any(name[:-1] == lower for name in shipped_names()))


def _describe_shipped() -> str:
    """The shipped lists in a few words: without the variants of single methods."""
    plain = [name for name in shipped_names() if "_" not in name.removeprefix("coco_")]
    return f"a shipped list ({', '.join(plain)}; variants in docs/vocabularies.md)"


def _build(document: Document) -> Vocabulary:
    where = f"{document.where}: " if document.where else ""
    try:
        entries = tuple(_build_entries(document))
        return Vocabulary(entries, document.name, document.shared_prompts, document.prototypes)
    except VocabularyError as error:
        message = str(error)
        raise VocabularyError(message if message.startswith(where) else where + message) from None


def _build_entries(document: Document) -> list[ClassEntry]:
    return [_build_entry(dict(fields)) for fields in document.classes]


def _build_entry(fields: dict[str, object]) -> ClassEntry:
    name = str(fields.pop("name"))
    unknown = sorted(fields.keys() - set(ENTRY_KEYS))
    if unknown:
        raise VocabularyError(
            f"class '{name}': unknown key '{unknown[0]}'.{nearest(unknown[0], ENTRY_KEYS)} "
            f"Valid: {', '.join(ENTRY_KEYS)}"
        )
    synonyms = fields.pop("synonyms", None)
    if synonyms is not None and fields.get("prompts") is not None:
        raise VocabularyError(
            f"class '{name}': give synonyms (added to the name) or prompts (instead of the name), not both"
        )
    if synonyms is not None:
        fields["prompts"] = (name, *_tidy(synonyms, "synonyms", name))
    if fields.get("prompts", ()) == []:
        raise VocabularyError(f"class '{name}': prompts is an empty list; leave it out to use the name")
    # A class called background is one, unless it is said not to be.
    fields = {"background": fold(name) == "background"} | {
        key: _CHECKS[key](value, key, name) for key, value in fields.items() if value is not None
    }
    return ClassEntry(name, **fields)  # type: ignore[arg-type]  # checked above


def _tidy(texts: object, what: str, name: str) -> tuple[str, ...]:
    """Texts with single spaces, each once."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise VocabularyError(f"class '{name}': {what} must be a list of texts, got {texts!r}")
    found: dict[str, str] = {}
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise VocabularyError(
                f"class '{name}': {what} must be texts that are not empty, got {text!r}"
                + ("" if isinstance(text, str) else "; put it in quotes")
            )
        found.setdefault(fold(text), " ".join(text.split()))
    return tuple(found.values())


def _check_threshold(value: object, what: str, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise VocabularyError(f"class '{name}': {what} must be a number in [0, 1], got {value!r}")
    if not 0 <= value <= 1:
        raise VocabularyError(f"class '{name}': {what} is a probability in [0, 1], got {value}")
    return float(value)


def _check_color(value: object, what: str, name: str) -> tuple[int, int, int] | None:
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        value = tuple(bytes.fromhex(value[1:]))
    channels = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    fits = all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each <= 255 for each in channels)
    if len(channels) != 3 or not fits:
        raise VocabularyError(
            f"class '{name}': {what} must be [red, green, blue] in 0..255 or '#rrggbb', got {value!r}"
        )
    return channels[0], channels[1], channels[2]


def _check_flag(value: object, what: str, name: str) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise VocabularyError(f"class '{name}': {what} must be true or false, got {value!r}")


#: How what is said about a class is checked and tidied.
_CHECKS: dict[str, Callable[[Any, str, str], Any]] = {
    "prompts": _tidy,
    "descriptions": _tidy,
    "background": _check_flag,
    "threshold": _check_threshold,
    "color": _check_color,
    "thing": _check_flag,
}
