import re
from pathlib import Path

import pytest

from ovseg.text.class_files import shipped_names
from ovseg.text.templates import TEMPLATE_SETS, load_templates
from ovseg.text.vocabulary import ENTRY_KEYS, Vocabulary

PAGE = (Path(__file__).parents[2] / "docs" / "vocabularies.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| `")
]


def first_cells() -> list[str]:
    return [name for row in ROWS for name in re.findall(r"`([^`]+)`", row[0])]


def test_tables_name_everything_once():
    assert sorted(first_cells()) == sorted([*shipped_names(), *TEMPLATE_SETS, *ENTRY_KEYS])


def test_counts():
    rows = [row for row in ROWS if len(row) == 4]
    assert rows
    for row in rows:
        names, classes, queries = re.findall(r"`([^`]+)`", row[0]), row[1].split(", "), row[2].split(", ")
        found = [Vocabulary.parse(name) for name in names]
        assert [str(len(each)) for each in found] == classes
        assert [str(len(each.queries)) for each in found] == queries


@pytest.mark.parametrize("language", ["yaml", "text"])
def test_examples_parse(language, tmp_path):
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    path = tmp_path / f"classes.{'txt' if language == 'text' else language}"
    for block in blocks:
        path.write_text(block, encoding="utf-8")
        assert len(Vocabulary.parse(path)) >= 3


def test_python_example_runs():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, {})


def test_template_examples():
    assert load_templates("a satellite image of {}.") == ("a satellite image of {}.",)
    assert '"a satellite image of {}."' in PAGE
