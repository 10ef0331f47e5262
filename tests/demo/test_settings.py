"""What is typed, and links."""

from __future__ import annotations

from threading import Barrier, Thread
from urllib.parse import parse_qsl

import pytest

from ovseg.demo.lru import Lru
from ovseg.demo.settings import MAX_CLASSES, Settings
from ovseg.errors import ConfigError, VocabularyError


def test_words_are_classes_with_synonyms_and_one_background() -> None:
    vocabulary = Settings(
        words="dog = puppy | hound, grass,\nsky", background="wall, dog, floor = tiles"
    ).vocabulary()
    assert vocabulary.names == ("dog", "grass", "sky", "background")
    assert vocabulary.classes[0].prompts == ("dog", "puppy", "hound")
    assert vocabulary.classes[3].prompts == ("wall", "floor", "tiles")  # a class is no background
    assert vocabulary.background == {3}


@pytest.mark.parametrize("words", ["/etc/passwd.txt", "~/classes.txt", "ade150", "./a.json"])
def test_words_never_name_a_file(words: str) -> None:
    assert Settings(words=words).vocabulary().names == (words,)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (" , ", "no words"),
        ("dog = puppy |", "empty synonym"),
        ("= puppy", "no name"),
        ("cat, dog = " + "o" * 81, "has 81 letters"),
        ("dog, cat = dog", "speaks for two classes"),
        (", ".join(f"thing {k}" for k in range(MAX_CLASSES + 1)), f"up to {MAX_CLASSES}"),
    ],
)
def test_unusable_words_are_told(words: str, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        Settings(words=words).vocabulary()


@pytest.mark.parametrize(
    "raw",
    [{"threshold": float("nan")}, {"opacity": 2}, {"threshold": "0.5"}, {"tab": "x"}, {"colorblind": 1}],
)
def test_raw_inputs_of_another_kind_are_refused(raw: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Settings.from_inputs(**raw)


def test_too_much_text_is_refused() -> None:
    with pytest.raises(VocabularyError, match="6,000 letters"):
        Settings.from_inputs(words="a" * 6001)


def test_a_link_says_what_differs_and_is_read_back() -> None:
    defaults = Settings()
    settings = Settings(words="dög & 犬, a=b", threshold=0.25, tab="detect", colorblind=True)
    query = dict(parse_qsl(settings.query(defaults)))
    assert set(query) == {"words", "threshold", "tab", "colorblind"}
    assert Settings.from_query(query, defaults) == (settings, [])


def test_what_is_wrong_in_a_link_is_told_and_left_out() -> None:
    settings, problems = Settings.from_query(
        {"threshold": "7", "tab": "rm", "words": "cat", "x": "y"}, Settings()
    )
    assert settings == Settings(words="cat")
    assert len(problems) == 2
    assert "expected 0 to 1" in problems[0]


def test_what_many_ask_for_is_made_once() -> None:
    kept: Lru[int] = Lru(2)
    made: list[int] = []
    start = Barrier(8)

    def make() -> int:
        made.append(1)
        return 7

    def ask() -> None:
        start.wait()
        assert kept.get("a", make) == 7

    threads = [Thread(target=ask) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert made == [1]


def test_the_oldest_go_first_and_failures_leave_nothing() -> None:
    kept: Lru[int] = Lru(10, int)
    for value in (4, 5):
        kept.get(value, lambda value=value: value)
    kept.get(4, lambda: 0)  # asked for again: 5 is the oldest now
    kept.get(6, lambda: 6)
    assert 5 not in kept
    assert {4, 6} <= {k for k in (4, 5, 6) if k in kept}
    assert kept.total == 10
    kept.get(99, lambda: 99)  # too large alone, and still the latest
    assert len(kept) == 1
    with pytest.raises(ZeroDivisionError):
        kept.get("bad", lambda: 1 // 0)
    assert kept.get("bad", lambda: 3) == 3
