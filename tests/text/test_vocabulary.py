import json
from pathlib import Path

import pytest
import yaml

from ovseg.errors import VocabularyError
from ovseg.text.vocabulary import ClassEntry, Vocabulary

RICH = {
    "background": {"prompts": ["wall", "floor"]},
    "cat": None,
    "dog": ["puppy", "hound"],
    "sky": {
        "synonyms": ["clouds"],
        "descriptions": ["The blue above the horizon."],
        "threshold": 0.25,
        "color": [1, 2, 3],
        "thing": False,
    },
}


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def prompts(vocabulary: Vocabulary) -> dict[str, tuple[str, ...]]:
    return {entry.name: entry.prompts for entry in vocabulary.classes}


@pytest.mark.parametrize(
    "spec", ["cat, dog,sofa", " cat ,dog, sofa, ", "cat\ndog\nsofa\n", ["cat", "dog", "sofa"]]
)
def test_plain_names(spec):
    vocabulary = Vocabulary.parse(spec)
    assert vocabulary.names == ("cat", "dog", "sofa")
    assert len(vocabulary) == 3
    assert [tuple(each) for each in vocabulary.queries] == [
        (0, "cat", False),
        (1, "dog", False),
        (2, "sofa", False),
    ]
    assert vocabulary.background == frozenset()
    assert vocabulary.thresholds is None
    assert vocabulary.colors == (None, None, None)


def test_inline_synonyms():
    vocabulary = Vocabulary.parse("cat, dog = puppy | hound, Dining  table")
    assert prompts(vocabulary) == {
        "cat": ("cat",),
        "dog": ("dog", "puppy", "hound"),
        "Dining table": ("Dining table",),
    }


def test_a_name_that_is_its_own_synonym_counts_once():
    assert prompts(Vocabulary.parse("dog = Dog | hound | dog")) == {"dog": ("dog", "hound")}


def test_any_script_is_a_name():
    assert Vocabulary.parse("天空, 😀, Straße = rue").names == ("天空", "😀", "Straße")


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_text_file(tmp_path, bom, newline):
    lines = ["# my classes", "", "cat, kitten", "  dog  # man's best friend", "C#", "bird = crow | gull", ""]
    path = write(tmp_path, "classes.txt", bom + newline.join(lines).encode())
    for spec in (path, str(path)):
        assert prompts(Vocabulary.parse(spec)) == {
            "cat": ("cat", "kitten"),
            "dog": ("dog",),
            "C#": ("C#",),
            "bird": ("bird", "crow", "gull"),
        }


@pytest.mark.parametrize(
    ("suffix", "dump"), [("json", json.dumps), ("yaml", yaml.safe_dump), ("yml", json.dumps)]
)
def test_rich_file(tmp_path, suffix, dump):
    text = dump(RICH, sort_keys=False) if suffix == "yaml" else dump(RICH)
    vocabulary = Vocabulary.parse(write(tmp_path, f"classes.{suffix}", text))
    assert vocabulary == Vocabulary.parse(RICH)
    assert prompts(vocabulary) == {
        "background": ("wall", "floor"),
        "cat": ("cat",),
        "dog": ("dog", "puppy", "hound"),
        "sky": ("sky", "clouds"),
    }
    assert vocabulary.background == {0}
    assert vocabulary.thresholds == (None, None, None, 0.25)
    assert vocabulary.colors == (None, None, None, (1, 2, 3))
    assert vocabulary.classes[3].thing is False
    assert tuple(vocabulary.queries[-1]) == (3, "The blue above the horizon.", True)


def test_list_file_and_wrapped_file(tmp_path):
    plain = Vocabulary.parse(write(tmp_path, "a.json", '["cat", {"name": "dog", "synonyms": ["hound"]}]'))
    wrapped = Vocabulary.parse(
        write(
            tmp_path,
            "b.yaml",
            "name: pets\nsource: me\nclasses:\n  - cat\n  - {name: dog, synonyms: [hound]}\n",
        )
    )
    assert plain.classes == wrapped.classes
    assert (plain.name, wrapped.name) == ("", "pets")


def test_a_base_is_taken_over_and_changed(tmp_path):
    path = write(
        tmp_path,
        "mine.yaml",
        "base: voc21\nclasses:\n  person: {prompts: [human]}\n  cat: {threshold: 0.5}\n",
    )
    mine, base = Vocabulary.parse(path), Vocabulary.parse("voc21")
    assert mine.names == base.names
    assert mine.classes[15].prompts == ("human",)
    assert mine.classes[15].color == base.classes[15].color
    assert mine.classes[8].threshold == 0.5
    assert mine.classes[:8] == base.classes[:8]


def test_synonyms_in_place_of_the_prompts_of_the_base():
    changed = Vocabulary.parse({"base": "voc21", "classes": {"person": ["human"]}})
    assert changed.classes[15].prompts == ("person", "human")


def test_background_by_name_unless_said_otherwise():
    assert Vocabulary.parse("cat, Background = wall | sky").background == {1}
    assert Vocabulary.parse({"cat": None, "background": {"background": False}}).background == frozenset()
    assert Vocabulary.parse({"cat": None, "rest": {"background": True}}).background == {1}


def test_colours_may_be_hexadecimal():
    assert Vocabulary.parse({"cat": {"color": "#0a80FF"}}).colors == ((10, 128, 255),)


def test_parse_hands_a_vocabulary_back():
    vocabulary = Vocabulary((ClassEntry("cat"),))
    assert Vocabulary.parse(vocabulary) is vocabulary
    assert Vocabulary.parse([ClassEntry("cat", ("kitty",)), "dog"]).queries[0].text == "kitty"


@pytest.mark.parametrize("spec", ["voc21", "coco_object", "cat, dog = hound", RICH])
def test_round_trip(spec):
    vocabulary = Vocabulary.parse(spec)
    data = json.loads(json.dumps(vocabulary.to_dict(), sort_keys=True))
    assert Vocabulary.from_dict(data) == vocabulary
    assert Vocabulary.from_dict(data).fingerprint() == vocabulary.fingerprint()


def test_fingerprint_is_stable_and_sees_every_part():
    # written down, since manifests of finished runs hold it
    known = "d09a75c82587259e321fef79c310f26afaa44550928636c0b84e14e537888f09"
    assert Vocabulary.parse("cat, dog = hound").fingerprint() == known
    variants = [
        "cat, dog",
        "dog, cat",
        "cat = kitten, dog",
        *({"cat": {key: value}, "dog": None} for key, value in _DETAILS.items()),
    ]
    assert len({Vocabulary.parse(each).fingerprint() for each in variants}) == len(variants)
    assert Vocabulary((ClassEntry("cat"),), name="a").fingerprint() == Vocabulary.parse("cat,").fingerprint()


_DETAILS = {
    "descriptions": ["a cat"],
    "background": True,
    "threshold": 0.5,
    "color": [0, 0, 1],
    "thing": True,
    "prompts": ["tom"],
}


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("", ["empty", "at least one class"]),
        ("  \n ", ["empty"]),
        ([], ["empty"]),
        ({}, ["empty"]),
        ("cat,,dog", ["empty class name"]),
        ("cat, = dog", ["empty class name"]),
        ("cat = kitten |", ["empty synonym", "cat"]),
        (["cat", "  "], ["not empty"]),
        ("cat, dog, CAT", ["'CAT'", "'cat'", "comes twice", "1", "3"]),
        (["traffic light", "Traffic  Light"], ["comes twice"]),
        ("cat = pet, dog = Pet", ["'cat'", "'dog'", "'Pet'", "two classes"]),
        ({"a": {"descriptions": ["So it is."]}, "b": {"descriptions": ["so it is."]}}, ["two classes"]),
        ({"background": {"prompts": ["wall"]}, "wall": None}, ["'background'", "'wall'"]),
        ({"cat": {"colour": [1, 2, 3]}}, ["'cat'", "'colour'", "Did you mean 'color'?"]),
        ({"cat": {"color": [1, 2]}}, ["'cat'", "[1, 2]"]),
        ({"cat": {"color": [1, 2, 256]}}, ["256"]),
        ({"cat": {"color": "red"}}, ["'red'", "#rrggbb"]),
        ({"cat": {"threshold": 1.5}}, ["1.5", "[0, 1]"]),
        ({"cat": {"threshold": "high"}}, ["'high'", "number"]),
        ({"cat": {"threshold": True}}, ["True", "number"]),
        ({"cat": {"background": "yes"}}, ["background", "'yes'"]),
        ({"cat": {"prompts": "kitty"}}, ["'cat'", "list of texts"]),
        ({"cat": {"prompts": []}}, ["'cat'", "empty list"]),
        ({"cat": ["kitty", False]}, ["False", "quotes"]),
        ({"cat": {"prompts": ["a"], "synonyms": ["b"]}}, ["not both"]),
        ({"cat": 3}, ["'cat'", "3 (int)"]),
        ({"classes": ["cat"], "sorce": "me"}, ["'sorce'", "Did you mean 'source'?"]),
        ({"base": "voc21", "classes": {"catt": None}}, ["'catt'", "Did you mean 'cat'?"]),
        ({"base": "voc2l"}, ["'voc2l'", "Did you mean 'voc21'?"]),
        ([{"prompts": ["cat"]}], ["with a `name`"]),
        ("voc22", ["'voc22'", "Did you mean 'voc21'?"]),
        ("voc", ["'voc'", "voc21"]),
        ("coco-stuff", ["Did you mean 'coco_stuff'?", "'coco-stuff,'"]),
        ("cityscape", ["Did you mean 'cityscapes'?"]),
        ("classes.txt", ["classes.txt", "no such"]),
        ("./some/classes", ["some/classes", ".txt"]),
    ],
)
def test_errors_say_what_is_wrong(spec, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VocabularyError) as caught:
        Vocabulary.parse(spec)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("a.txt", "cat\n\ndog,,hound\n", [":3:", "empty name"]),
        ("a.txt", "cat\ndog = \n", [":2:", "empty synonym"]),
        ("a.txt", b"cat\ncaf\xe9\n", [":2:", "UTF-8"]),
        ("a.txt", "# nothing\n", ["a.txt", "empty"]),
        ("a.txt", "cat\nCat\n", ["a.txt", "comes twice"]),
        ("a.json", '["cat",\n "dog"', [":2:", "JSON"]),
        ("a.json", '{"cat": null, "cat": ["kitty"]}', ["'cat' comes twice"]),
        ("a.yaml", "cat:\ndog: [\n", ["a.yaml:3", "YAML"]),
        ("a.yaml", "cat:\ndog:\ncat: [kitty]\n", ["a.yaml:3", "'cat' comes twice", "line 1"]),
        ("a.yaml", "- cat\n- no\n", ["False", "quotes"]),
        ("a.yaml", "7: [seven]\n", ["7 (int)", "quotes"]),
        ("a.yaml", "", ["a.yaml", "nothing"]),
        ("a.yaml", "just text", ["a.yaml", "just text"]),
        ("a.yaml", "cat: !!python/object/apply:os.getcwd []\n", ["a.yaml:1", "YAML"]),
        ("a.csv", "cat", [".txt, .json, .yaml, .yml"]),
    ],
)
def test_file_errors_name_file_and_line(tmp_path, name, text, parts):
    with pytest.raises(VocabularyError) as caught:
        Vocabulary.parse(write(tmp_path, name, text))
    for part in (str(tmp_path), *parts):
        assert part in str(caught.value)


def test_a_folder_is_not_a_file(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(VocabularyError, match=r"a\.txt: cannot be read"):
        Vocabulary.parse(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "spec", ["cat", "t-shirt", "scenes", "voc,", "dog2", "hot dog", "and/or", "the context59 map"]
)
def test_lone_words_are_classes(spec):
    assert len(Vocabulary.parse(spec)) == 1


def test_shared_prompts_only_where_asked_for():
    spec = {"classes": {"background": {"prompts": ["wall"]}, "wall": None}}
    with pytest.raises(VocabularyError, match="two classes"):
        Vocabulary.parse(spec)
    assert len(Vocabulary.parse({**spec, "shared_prompts": True}).queries) == 2
