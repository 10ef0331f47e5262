from __future__ import annotations

from ovseg.text.kinds import things_of
from ovseg.text.vocabulary import Vocabulary


def test_lists_say_what_a_vocabulary_leaves_open() -> None:
    assert things_of(Vocabulary.parse("Dog, grass, sky, flurble")) == (True, False, False, None)


def test_a_vocabulary_decides_for_itself() -> None:
    vocabulary = Vocabulary.parse({"classes": {"grass": {"thing": True}, "dog": {"thing": False}}})
    assert things_of(vocabulary) == (True, False)
