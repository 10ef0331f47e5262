"""The split of open-vocabulary COCO as annotation files: 48 base classes to train, and 17 novel ones to test.

Protocol: Bansal et al., arXiv 1804.04340, as OVR-CNN files it (github.com/alirezazareian/ovr-cnn at c904af7,
ipynb/001.ipynb): objects of other classes are left out, and so are images without any object of the split.

*Deviation*: categories carry no text embedding ("embedding"); every method makes its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from ovseg.prepare.conversion import write_text
from ovseg.prepare.instance_files import class_names, classes_of, read_instances

#: By part: the classes, with what the file calls them.
PARTS = {
    "seen": {"seen": "ov_coco_base"},
    "unseen": {"unseen": "ov_coco_novel"},
    "all": {"seen": "ov_coco_base", "unseen": "ov_coco_novel"},
}


class SplitFile(NamedTuple):
    """A file to be made of another.

    Attributes:
        source: `instances_*.json`.
        target: where the split goes.
        part: of `PARTS`.
    """

    source: Path
    target: Path
    part: str


def convert_file(item: SplitFile) -> str | None:
    """One annotation file; what exists is left as it is.

    Returns:
        What was wrong with it, or None.
    """
    source, target, part = item
    if target.exists():
        return None
    told = read_instances(source)
    side: dict[int, str] = {}
    for word, vocabulary in PARTS[part].items():
        numbers = classes_of(told["categories"], class_names(vocabulary))
        missing = [name for name, number in numbers.items() if number is None]
        if missing:
            return f"{source}: {len(missing)} classes are not in it: {', '.join(missing[:5])}"
        side |= {number: word for number in numbers.values() if number is not None}
    objects = [each for each in told["annotations"] if each["category_id"] in side]
    shown = {each["image_id"] for each in objects}
    kept = {
        **told,
        "categories": [
            {**each, "split": side[each["id"]]} for each in told["categories"] if each["id"] in side
        ],
        "images": [each for each in told["images"] if each["id"] in shown],
        "annotations": objects,
    }
    write_text(json.dumps(kept), target)
    return None
