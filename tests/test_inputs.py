from __future__ import annotations

import os
from pathlib import Path

import pytest

from ovseg import inputs
from ovseg.errors import ConfigError
from ovseg.inputs import find_images, natural_key, output_stems


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "photos/img10.jpg",
        "photos/img2.JPG",
        "photos/notes.txt",
        "photos/.hidden.jpg",
        "photos/.git/x.png",
        "photos/sub/b.png",
        "photos/sub/deep/c 猫🙂.webp",
        "photos/-dash.png",
        "other/img2.jpg",
        "other/raw.weird",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def names(*inputs: object) -> list[str]:
    return [each.name for each in find_images([str(each) for each in inputs])]


def test_folder_is_recursive_sorted_and_filtered(tree: Path) -> None:
    expected = ["-dash.png", "img2.JPG", "img10.jpg", "sub/b.png", "sub/deep/c 猫🙂.webp"]
    assert names(tree / "photos") == expected
    found = find_images([tree / "photos"])
    assert all(each.path == tree / "photos" / each.name for each in found)


def test_several_inputs_are_named_from_the_folder_that_holds_all(tree: Path) -> None:
    found = names(tree / "other", tree / "photos" / "sub")
    assert found == ["other/img2.jpg", "photos/sub/b.png", "photos/sub/deep/c 猫🙂.webp"]
    assert names(tree / "photos/img2.JPG", tree / "other/img2.jpg") == ["photos/img2.JPG", "other/img2.jpg"]
    assert names(tree / "photos/img2.JPG") == ["img2.JPG"]


def test_same_file_twice_is_taken_once(tree: Path) -> None:
    (tree / "photos/sub/link.png").symlink_to(tree / "photos/sub/b.png")
    assert names(tree / "photos/sub/b.png", tree / "photos/sub", tree / "photos/../photos/sub") == [
        "b.png",
        "deep/c 猫🙂.webp",
    ]


def test_linked_folders_are_followed_and_loops_end(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "photos/sub/loop").symlink_to(tree / "photos")
    (tree / "photos/more").symlink_to(tree / "other")
    (tree / "photos/broken.jpg").symlink_to(tree / "nothing")
    listed = []
    monkeypatch.setattr(inputs, "_listdir", lambda folder: listed.append(folder) or os.listdir(folder))
    found = names(tree / "photos")
    assert len(listed) == 4, "each real folder is entered once"
    assert "more/img2.jpg" in found
    assert len([name for name in found if name.endswith("b.png")]) == 1
    assert "broken.jpg" in found, "reported as unreadable, not left out"


def test_globs(tree: Path) -> None:
    assert names(tree / "photos" / "*.jpg") == ["img10.jpg"]
    assert names(tree / "photos/**/*.png") == ["-dash.png", "sub/b.png"]
    assert names(tree / "**/img2.*") == ["other/img2.jpg", "photos/img2.JPG"]
    (tree / "photos/[1].jpg").write_bytes(b"x")
    assert names(tree / "photos/[1].jpg") == ["[1].jpg"], "a file may be called like a pattern"


def test_list_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = tree / "list.txt"
    listing.write_text(
        f"# comment\n\nphotos/img10.jpg\r\n{tree}/other/raw.weird\nphotos/img10.jpg\nphotos/gone.jpg\n",
        encoding="utf-8-sig",
    )
    monkeypatch.chdir("/")
    assert names(listing) == ["photos/img10.jpg", "other/raw.weird", "photos/gone.jpg"]


def test_named_file_with_any_suffix_is_tried(tree: Path) -> None:
    assert names(tree / "other/raw.weird") == ["raw.weird"]


def test_outputs_of_runs_are_no_inputs(tree: Path) -> None:
    run = tree / "photos/out"
    run.mkdir()
    for name in ("run.json", "results.jsonl", "overlay.jpg"):
        (run / name).write_bytes(b"x")
    assert not any("overlay" in name for name in names(tree / "photos"))
    assert names(run) == ["overlay.jpg"], "unless it is named itself"


def test_nothing_found_or_missing(tree: Path) -> None:
    with pytest.raises(ConfigError, match="no image found"):
        find_images([str(tree / "photos/.git")[:-4] + "*.nope"])
    with pytest.raises(ConfigError, match=r"Did you mean '.*photos'"):
        find_images([str(tree / "photo")])
    with pytest.raises(ConfigError, match="no input given"):
        find_images([])
    empty = tree / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="chosen by suffix"):
        find_images([empty])


def test_file_name_that_is_not_utf8(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    try:
        Path(os.fsdecode(raw)).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert names(tmp_path) == ["caf\udce9.jpg"]


def test_natural_order() -> None:
    assert sorted(["a10", "a2", "B1", "a", "10", "9"], key=natural_key) == ["9", "10", "a", "a2", "a10", "B1"]


def test_stems_are_short_while_unique() -> None:
    assert output_stems(["a.jpg", "sub/a.jpg", "b.c.png"]) == {
        "a.jpg": "a",
        "sub/a.jpg": "sub/a",
        "b.c.png": "b.c",
    }
    assert output_stems(["a.jpg", "a.png", "c.jpg"]) == {"c.jpg": "c", "a.jpg": "a.jpg", "a.png": "a.png"}


def test_stems_never_collide_and_stay() -> None:
    tricky = ["a.jpg", "a.png", "a.jpg.png", "A.JPG", "a.jpg-2.gif", "x/a.jpg"]
    stems = output_stems(tricky)
    assert len({stem.casefold() for stem in stems.values()}) == len(tricky)
    earlier = output_stems(["a.jpg"])
    later = output_stems(["a.jpg", "a.png"], earlier)
    assert later["a.jpg"] == "a"
    assert later["a.png"] == "a.png"
