from importlib.resources import files
from itertools import pairwise

import pytest
import yaml

from ovseg.text.class_files import fold, load_shipped, shipped_names
from ovseg.text.vocabulary import Vocabulary

#: list -> classes, queries, background classes
SIZES = {
    "ade150": (150, 150, 0),
    "ade150_names": (150, 150, 0),
    "ade847": (847, 1235, 0),
    "ade847_proxyclip": (847, 847, 0),
    "cityscapes": (19, 19, 0),
    "cityscapes_names": (19, 19, 0),
    "coco": (80, 80, 0),
    "coco_object": (81, 81 - 2 + 26 + 8, 1),
    "coco_object_clearclip": (81, 81, 1),
    "coco_object_corrclip": (81, 80 + 16, 1),
    "coco_object_dinoiser": (81, 81, 1),
    "coco_object_proxyclip": (81, 80 + 17, 1),
    "coco_stuff": (171, 171, 0),
    "coco_stuff_names": (171, 171, 0),
    "context459": (459, 459, 0),
    "context59": (59, 59, 0),
    "context59_dinoiser": (59, 59, 0),
    "context60": (60, 60, 1),
    "context60_dinoiser": (60, 60, 1),
    "lvis": (1203, 1203, 0),
    "lvis_common": (461, 461, 0),
    "lvis_frequent": (405, 405, 0),
    "lvis_rare": (337, 337, 0),
    "ov_coco": (65, 65, 0),
    "ov_coco_base": (48, 48, 0),
    "ov_coco_novel": (17, 17, 0),
    "voc20": (20, 18 + 7 + 5, 0),
    "voc20_clearclip": (20, 20, 0),
    "voc20_dinoiser": (20, 20, 0),
    "voc20_proxyclip": (20, 20, 0),
    "voc21": (21, 18 + 26 + 7 + 5, 1),
    "voc21_clearclip": (21, 21, 1),
    "voc21_dinoiser": (21, 21, 1),
    "voc21_proxyclip": (21, 20 + 26, 1),
}
#: dataset -> mmseg class, and how many of its first classes the list leaves out
MMSEG = {
    "voc21": ("PascalVOCDataset", 0),
    "voc20": ("PascalVOCDataset", 1),
    "context60": ("PascalContextDataset", 0),
    "context59": ("PascalContextDataset59", 0),
    "coco_stuff": ("COCOStuffDataset", 0),
    "cityscapes": ("CityscapesDataset", 0),
    "ade150": ("ADE20KDataset", 0),
}


def prompts(name: str) -> dict[str, tuple[str, ...]]:
    return {entry.name: entry.prompts for entry in Vocabulary.parse(name).classes}


@pytest.fixture(scope="module")
def mmseg_datasets():
    import warnings

    pytest.importorskip("mmseg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mmseg's own
        import mmseg.datasets

    return mmseg.datasets


def test_every_list_is_known_here():
    assert set(shipped_names()) == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_sources(name):
    vocabulary = Vocabulary.parse(name)
    assert vocabulary.name == name
    assert (len(vocabulary), len(vocabulary.queries), len(vocabulary.background)) == SIZES[name]
    assert vocabulary.background <= {0}
    assert len(load_shipped(name).source) > 20
    taken = [color for color in vocabulary.colors if color is not None]
    assert len(set(taken)) == len(taken)
    assert len(taken) in (0, len(vocabulary))


@pytest.mark.parametrize("dataset", MMSEG)
def test_order_is_that_of_the_dataset_labels(dataset, mmseg_datasets):
    class_name, skipped = MMSEG[dataset]
    metainfo = getattr(mmseg_datasets, class_name).METAINFO
    expected = tuple(name.strip() for name in metainfo["classes"][skipped:])
    lists = [name for name in SIZES if name == dataset or name.startswith(f"{dataset}_")]
    assert lists
    for name in lists:
        vocabulary = Vocabulary.parse(name)
        assert vocabulary.names == expected
        if vocabulary.colors[0] is not None:
            assert vocabulary.colors == tuple(tuple(each) for each in metainfo["palette"][skipped:])


def test_coco_object_is_background_and_the_things_of_coco_stuff(mmseg_datasets):
    expected = ("background", *mmseg_datasets.COCOStuffDataset.METAINFO["classes"][:80])
    for name in SIZES:
        if name.startswith("coco_object"):
            assert Vocabulary.parse(name).names == expected


@pytest.mark.parametrize(
    ("name", "things"),
    [("coco_object", 80), ("coco_stuff", 80), ("voc21", 20), ("cityscapes", 8), ("ade150", 100)],
)
def test_things(name, things):
    flags = {entry.name: entry.thing for entry in Vocabulary.parse(name).classes}
    assert sum(flag is True for flag in flags.values()) == things
    assert all(flag is not None for entry, flag in flags.items() if entry != "background")


def test_stuff_follows_things_in_coco():
    flags = [entry.thing for entry in Vocabulary.parse("coco_stuff").classes]
    assert sum(before != after for before, after in pairwise(flags)) == 1


def test_published_prompts_that_move_results():
    """Facts of METHODS: SCLIP, ProxyCLIP and CorrCLIP differ in their background words and in people."""
    many = prompts("voc21")["background"]
    assert (len(many), many[0], many[-1]) == (26, "sky", "fence")
    assert prompts("voc21_proxyclip")["background"] == prompts("coco_object")["background"] == many
    assert prompts("voc21_clearclip")["background"] == ("background",)
    assert prompts("voc21_dinoiser")["background"] == ("background",)
    proxy = prompts("coco_object_proxyclip")["background"]
    assert proxy == (*many[:14], "floor", "hill", "rail")
    assert prompts("coco_object_corrclip")["background"] == tuple(each for each in proxy if each != "bed")
    assert prompts("coco_object_corrclip")["person"] == ("people",)
    assert prompts("voc21")["person"][:2] == ("person", "person in shirt")
    assert prompts("coco_object")["person"] == (*prompts("voc21")["person"], "body")
    assert prompts("voc21_clearclip")["person"] == ("person",)
    assert prompts("voc20")["tvmonitor"][0] == "television monitor"
    assert prompts("voc20_proxyclip")["tvmonitor"] == ("tvmonitor",)
    assert prompts("voc21")["boat"] == prompts("voc21_clearclip")["boat"] == ("ship",)
    assert prompts("voc21_dinoiser")["boat"] == ("boat",)
    assert prompts("context60")["background"] == ("background",)
    assert prompts("ade150")["chest of drawers"] == ("chestofdrawers",)
    assert prompts("ade150_names")["chest of drawers"] == ("chest of drawers",)


def test_only_prompts_differ_between_the_lists_of_a_dataset():
    for name in SIZES:
        base = load_shipped(name)
        vocabulary = Vocabulary.parse(name)
        text = (files("ovseg.text") / "data" / f"{name}.yaml").read_text(encoding="utf-8")
        parent = yaml.safe_load(text).get("base")
        if parent:
            other = Vocabulary.parse(parent)
            assert vocabulary.names == other.names
            assert vocabulary.colors == other.colors
            assert [each.thing for each in vocabulary.classes] == [each.thing for each in other.classes]
            changed = yaml.safe_load(text).get("classes") or {}
            mine, theirs = prompts(name), prompts(parent)
            for key in changed:  # a child never repeats its base
                assert mine[key] != theirs[key]
        else:
            assert base.classes


def test_ade847_gives_every_synonym_to_one_class():
    words = [fold(query.text) for query in Vocabulary.parse("ade847").queries]
    assert len(set(words)) == len(words)
    lists = prompts("ade847")
    assert lists["person"] == ("person", "individual", "someone", "somebody", "mortal", "soul")
    assert "pot" in lists
    assert "pot" not in lists["flowerpot"]
    assert prompts("ade847_proxyclip")["building"] == ("building, edifice",)


def test_splits_of_detection():
    """Base and novel classes share none and keep the order of the whole; names are the datasets'."""
    for whole, parts in {
        "ov_coco": ("ov_coco_base", "ov_coco_novel"),
        "lvis": ("lvis_rare", "lvis_common", "lvis_frequent"),
    }.items():
        names = Vocabulary.parse(whole).names
        split = [Vocabulary.parse(part).names for part in parts]
        assert sorted(sum(split, ())) == sorted(names)
        for part in split:
            assert list(part) == [name for name in names if name in part]
    coco = Vocabulary.parse("coco").names
    assert coco == Vocabulary.parse("coco_object").names[1:]
    assert [name for name in coco if name in Vocabulary.parse("ov_coco").names] == list(
        Vocabulary.parse("ov_coco").names
    )


def test_lists_are_read_once():
    assert load_shipped("voc21") is load_shipped("voc21")
