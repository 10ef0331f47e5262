"""Vocabularies as written by people: inline strings, text, JSON and YAML files, shipped class lists.

Everything here ends in a `Document`, plain and unchecked beyond its form; `Vocabulary` gives it meaning.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ovseg.errors import VocabularyError

FILE_SUFFIXES = (".txt", ".json", ".yaml", ".yml", ".safetensors")
#: What a file may say about itself next to `classes`.
DOCUMENT_KEYS = frozenset({"name", "source", "base", "shared_prompts", "classes", "prototypes"})

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Document:
    """What was written, a mapping per class.

    Attributes:
        classes: one mapping per class, each with a `name`.
        where: for messages ("classes.yaml"), empty for inline lists.
        name: what the list calls itself.
        source: where the list comes from.
        shared_prompts: whether two classes may share a prompt.
        prototypes: what examples of some classes have taught (`ovseg.prototypes.VisualPrototypes`), or None.
    """

    classes: tuple[Mapping[str, object], ...]
    where: str = ""
    name: str = ""
    source: str = ""
    shared_prompts: bool = False
    prototypes: Any = None  # by its name it would import torch here


def parse_inline(text: str) -> Document:
    """`cat, dog = puppy | hound, sofa`: classes after commas or line ends, synonyms after `=` and `|`."""
    body = re.sub(r",\s*$", "", text.strip())
    items = re.split(r"[,\n]", body) if body else []
    return Document(tuple(_parse_item(item, f"'{text.strip()[:60]}'") for item in items))


def read_file(path: Path) -> Document:
    """A vocabulary file. `.txt`: a class a line; `.json`, `.yaml`, `.safetensors`: see `parse_document`.

    Raises:
        VocabularyError: with the file, and the line where there is one.
    """
    if path.suffix.lower() not in FILE_SUFFIXES:
        raise VocabularyError(f"{path}: a vocabulary file ends in {', '.join(FILE_SUFFIXES)}")
    if path.suffix.lower() == ".safetensors":
        return _read_tensors(path)
    text = _read_text(path)
    if path.suffix.lower() == ".txt":
        return _parse_lines(text, str(path))
    return parse_document(_load(text, path), str(path))


def parse_document(data: object, where: str = "", tensors: Mapping[str, Any] | None = None) -> Document:
    """A list of classes, a mapping of class to details, or either under `classes`.

    An item of a list is a name or a mapping with a `name`; a class's details are null, a list of synonyms,
    or a mapping. Next to `classes` may stand `name`, `source`, `shared_prompts`, `prototypes` (written by
    tools/fit.py; their numbers may come as `tensors`) and `base`: a shipped list whose classes are taken
    over, so that `classes` only says what differs.
    """
    if isinstance(data, Mapping) and _is_wrapped(data):
        return _parse_wrapped(data, where, tensors)
    if isinstance(data, Mapping):
        classes = [_parse_details(name, details, where) for name, details in data.items()]
    elif isinstance(data, Sequence) and not isinstance(data, str | bytes):
        classes = [_parse_listed(item, where) for item in data]
    else:
        raise VocabularyError(
            f"{_prefix(where)}expected a list of classes or a mapping of class to details, got {_kind(data)}"
        )
    return Document(tuple(classes), where)


@cache
def shipped_names() -> tuple[str, ...]:
    """The class lists that come with the package."""
    return tuple(sorted(each.name[:-5] for each in _data_folder().iterdir() if each.name.endswith(".yaml")))


@cache
def load_shipped(name: str) -> Document:
    """A class list that comes with the package.

    Raises:
        VocabularyError: there is none of that name; the message says which there are.
    """
    if name not in shipped_names():
        raise VocabularyError(
            f"no class list is called '{name}'.{nearest(name, shipped_names())} "
            f"Shipped lists: {', '.join(shipped_names())}"
        )
    text = (_data_folder() / f"{name}.yaml").read_text(encoding="utf-8")
    document = parse_document(_load(text, Path(f"{name}.yaml")), f"class list '{name}'")
    return Document(document.classes, document.where, name, document.source, document.shared_prompts)


def nearest(name: str, valid: Sequence[str]) -> str:
    """` Did you mean 'x'?`, or nothing."""
    near = difflib.get_close_matches(name.lower(), valid, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def fold(text: str) -> str:
    """How two names are compared: without regard to case and spacing."""
    return " ".join(text.casefold().split())


def _data_folder() -> Any:  # a Traversable, whose home differs between Python versions
    return files("ovseg.text") / "data"


def _parse_item(text: str, where: str) -> dict[str, object]:
    """`dog` or `dog = puppy | hound`."""
    name, equals, synonyms = text.partition("=")
    if not name.strip():
        raise VocabularyError(f"{where}: an empty class name; remove the spare separator")
    if not equals:
        return {"name": name.strip()}
    found = [each.strip() for each in synonyms.split("|")]
    if not all(found):
        raise VocabularyError(f"{where}: an empty synonym of '{name.strip()}'; write 'dog = puppy | hound'")
    return {"name": name.strip(), "synonyms": found}


def _parse_lines(text: str, where: str) -> Document:
    classes = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = re.sub(r"(^|\s)#.*", "", line).strip()
        if not line:
            continue
        if "=" in line:
            classes.append(_parse_item(line, f"{where}:{number}"))
            continue
        name, *synonyms = (each.strip() for each in line.split(","))
        if not name or not all(synonyms):
            raise VocabularyError(
                f"{where}:{number}: an empty name in '{line}'; a line is 'name, synonym, synonym'"
            )
        classes.append({"name": name, "synonyms": synonyms})
    return Document(tuple(classes), where)


def _is_wrapped(data: Mapping[object, object]) -> bool:
    """Whether a mapping is a document with a `classes` part, and not a mapping of classes."""
    return isinstance(data.get("base"), str) or isinstance(data.get("classes"), Mapping | Sequence)


def _parse_wrapped(
    data: Mapping[object, object], where: str, tensors: Mapping[str, Any] | None = None
) -> Document:
    unknown = sorted(str(key) for key in data.keys() - DOCUMENT_KEYS)
    if unknown:
        raise VocabularyError(
            f"{_prefix(where)}unknown key '{unknown[0]}'.{nearest(unknown[0], sorted(DOCUMENT_KEYS))} "
            f"Valid next to `classes`: {', '.join(sorted(DOCUMENT_KEYS))}"
        )
    shared = data.get("shared_prompts", False)
    if not isinstance(shared, bool):
        raise VocabularyError(f"{_prefix(where)}shared_prompts must be true or false, got {shared!r}")
    own = parse_document(data.get("classes") or {}, where)
    classes = own.classes
    if "base" in data:
        base = load_shipped(str(data["base"]))
        shared = data.get("shared_prompts", base.shared_prompts) is True
        classes = _override(base, own)
    prototypes = data.get("prototypes")
    if prototypes is not None:
        from ovseg.prototypes import VisualPrototypes  # torch, which words alone do without

        prototypes = VisualPrototypes.from_json(prototypes, where, tensors)
    name, source = str(data.get("name") or ""), str(data.get("source") or "")
    return Document(classes, where, name, source, shared, prototypes)


def _override(base: Document, own: Document) -> tuple[Mapping[str, object], ...]:
    """The base's classes in its order; a class that is named again keeps what is not said anew."""
    changes = {str(each["name"]): each for each in own.classes}
    names = [str(each["name"]) for each in base.classes]
    for name in changes:
        if name not in names:
            raise VocabularyError(
                f"{_prefix(own.where)}class '{name}' is not in the base '{base.name}'.{nearest(name, names)}"
            )
    merged = []
    for each in base.classes:
        change = changes.get(str(each["name"]), {})
        # a new choice of prompts or synonyms replaces the old one, whichever of the two it was
        dropped = {"prompts", "synonyms"} if change.keys() & {"prompts", "synonyms"} else set()
        merged.append({**{key: value for key, value in each.items() if key not in dropped}, **change})
    return tuple(merged)


def _parse_listed(item: object, where: str) -> Mapping[str, object]:
    if isinstance(item, Mapping):
        if "name" not in item:
            raise VocabularyError(
                f"{_prefix(where)}a class in a list is a name, or a mapping with a `name`; got {dict(item)!r}"
            )
        return _parse_details(item["name"], {key: item[key] for key in item if key != "name"}, where)
    return _parse_details(item, None, where)


def _parse_details(name: object, details: object, where: str) -> Mapping[str, object]:
    if not isinstance(name, str):
        raise VocabularyError(
            f"{_prefix(where)}a class name must be text, got {_kind(name)}: put it in quotes, "
            "since YAML reads a bare yes, no, on, off or number as something else"
        )
    if details is None:
        return {"name": name}
    if isinstance(details, Mapping):
        return {"name": name, **{str(key): value for key, value in details.items()}}
    if isinstance(details, Sequence) and not isinstance(details, str | bytes):
        return {"name": name, "synonyms": list(details)}
    raise VocabularyError(
        f"{_prefix(where)}class '{name}': expected nothing, a list of synonyms or a mapping, got "
        f"{_kind(details)}"
    )


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise VocabularyError(f"{path}: no such vocabulary file") from None
    except OSError as error:
        raise VocabularyError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise VocabularyError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from error


def _load(text: str, path: Path) -> object:
    """JSON or YAML; a key that comes twice is an error, not a silent replacement."""
    try:
        if path.suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=lambda pairs: _pairs_to_dict(pairs, path))
        return yaml.load(text, Loader=_unique_key_loader(path))  # derived from SafeLoader
    except json.JSONDecodeError as error:
        raise VocabularyError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise VocabularyError(
            f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}"
        ) from error


def _pairs_to_dict(pairs: Sequence[tuple[str, object]], path: Path) -> dict[str, object]:
    seen: dict[str, object] = {}
    for key, value in pairs:
        if key in seen:
            raise VocabularyError(f"{path}: '{key}' comes twice; remove one")
        seen[key] = value
    return seen


def _unique_key_loader(path: Path) -> Any:
    class Loader(_Loader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
            lines: dict[object, int] = {}
            for key_node, _ in node.value:
                key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
                if isinstance(key, Hashable) and key in lines:
                    raise VocabularyError(
                        f"{path}:{line}: '{key}' comes twice, first in line {lines[key]}; remove one"
                    )
                if isinstance(key, Hashable):
                    lines[key] = line
            return super().construct_mapping(node, deep=deep)

    return Loader


def _read_tensors(path: Path) -> Document:
    """A vocabulary in the metadata of a safetensors file, whose tensors are its prototypes' numbers."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            text = (stored.metadata() or {}).get("vocabulary")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no mapping
    except FileNotFoundError:
        raise VocabularyError(f"{path}: no such vocabulary file") from None
    except (SafetensorError, OSError) as error:
        raise VocabularyError(f"{path}: not a safetensors file ({error})") from error
    if text is None:
        raise VocabularyError(
            f"{path}: holds weights and no vocabulary; one with visual prototypes is written by tools/fit.py"
        )
    return parse_document(json.loads(text), str(path), tensors)


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{value!r} ({type(value).__name__})"
