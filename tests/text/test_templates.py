from pathlib import Path

import open_clip
import pytest

from ovseg.errors import VocabularyError
from ovseg.text.templates import TEMPLATE_SETS, fill, load_templates


@pytest.mark.parametrize(
    ("name", "count"), [("none", 1), ("simple", 1), ("imagenet80", 80), ("imagenet7", 7)]
)
def test_named_sets(name, count):
    templates = load_templates(name)
    assert len(set(templates)) == count
    assert all(each.count("{}") == 1 for each in templates)
    assert name in TEMPLATE_SETS


def test_imagenet_sets_are_openais():
    assert fill(load_templates("none")[0], "cat") == "cat"
    assert fill(load_templates("simple")[0], "cat") == "a photo of a cat."
    assert [fill(each, "cat") for each in load_templates("imagenet80")] == [
        each("cat") for each in open_clip.OPENAI_IMAGENET_TEMPLATES
    ]
    assert load_templates("imagenet80")[0] == "a bad photo of a {}."
    assert load_templates("imagenet7") == (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    )


def test_own_templates(tmp_path):
    path = tmp_path / "own.txt"
    path.write_bytes("\ufeff# satellite\na photo of {}.\n\n  {} from above \n".encode())
    expected = ("a photo of {}.", "{} from above")
    assert load_templates(path) == load_templates(str(path)) == load_templates(list(expected)) == expected
    assert load_templates("a map of {}") == ("a map of {}",)


def test_braces_in_names_stay():
    assert fill("a {}.", "set {x} of {}") == "a set {x} of {}."
    assert fill("{shiny} {}", "cat") == "{shiny} cat"


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("imagenet88", ["'imagenet88'", "Did you mean 'imagenet80'?"]),
        ([], ["no templates", "'none'"]),
        (["a photo"], ["exactly one {}", "'a photo'"]),
        (["{} and {}"], ["exactly one {}"]),
        ("{} and {}", ["exactly one {}"]),
        (["a {}", "a {}"], ["twice"]),
        ("missing.txt", ["missing.txt", "no such"]),
    ],
)
def test_errors(spec, parts):
    with pytest.raises(VocabularyError) as caught:
        load_templates(spec)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "part"), [(b"a photo\n", "exactly one"), (b"\xff{}", "UTF-8"), (b"#\n", "no templ")]
)
def test_file_errors_name_the_file(tmp_path: Path, content, part):
    path = tmp_path / "own.txt"
    path.write_bytes(content)
    with pytest.raises(VocabularyError, match=part) as caught:
        load_templates(path)
    assert str(path) in str(caught.value)
