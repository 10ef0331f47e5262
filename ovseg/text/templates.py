"""Prompt templates: the sentences that class names are put into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ovseg.errors import VocabularyError
from ovseg.text.class_files import nearest

#: Named sets of templates. The two of ImageNet are OpenAI's, as open_clip carries them.
TEMPLATE_SETS = ("none", "simple", "imagenet80", "imagenet7")

#: Anything that `load_templates` understands.
TemplateSpec = str | Path | Sequence[str]


def load_templates(spec: TemplateSpec) -> tuple[str, ...]:
    """Templates, each with exactly one `{}`.

    Args:
        spec: the name of a set, one template (`"a satellite image of {}."`), a `.txt` file with a
            template a line (`#` starts a comment line), or a sequence of templates.

    Raises:
        VocabularyError: an unknown name, an unreadable file, no template, or one without its `{}`.
    """
    if isinstance(spec, str) and spec in TEMPLATE_SETS:
        return _named_set(spec)
    if isinstance(spec, Path) or (isinstance(spec, str) and spec.lower().endswith(".txt")):
        return _check(_read_lines(Path(spec).expanduser()), f"{spec}: ")
    if isinstance(spec, str):
        if "{}" not in spec:
            raise VocabularyError(
                f"no template set is called '{spec}'.{nearest(spec, TEMPLATE_SETS)} Valid: "
                f"{', '.join(TEMPLATE_SETS)}, a .txt file, or templates with a {{}} for the class name"
            )
        return _check([spec])
    if not isinstance(spec, Iterable):
        raise VocabularyError(f"templates must be a name, a file or a list, got {type(spec).__name__}")
    return _check(list(spec))


def fill(template: str, name: str) -> str:
    """The template with the name in its place; braces in the name stay as they are."""
    return template.replace("{}", name, 1)


def _named_set(name: str) -> tuple[str, ...]:
    if name == "none":
        return ("{}",)
    if name == "simple":
        return ("a photo of a {}.",)
    import open_clip  # heavy, and of use only here

    sentences: Iterable[Callable[[str], str]] = (
        open_clip.OPENAI_IMAGENET_TEMPLATES if name == "imagenet80" else open_clip.SIMPLE_IMAGENET_TEMPLATES
    )
    return tuple(sentence("{}") for sentence in sentences)


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise VocabularyError(f"{path}: no such template file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise VocabularyError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _check(templates: Sequence[object], where: str = "") -> tuple[str, ...]:
    if not templates:
        raise VocabularyError(f"{where}no templates; to use the names as they are, say 'none'")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise VocabularyError(
                f"{where}a template holds exactly one {{}}, where the class name goes; got {template!r}"
            )
    if len(set(templates)) != len(templates):
        twice = next(each for each in templates if templates.count(each) > 1)
        raise VocabularyError(f"{where}template {twice!r} comes twice; remove one")
    return tuple(templates)  # type: ignore[arg-type]  # checked above
