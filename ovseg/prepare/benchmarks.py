"""The data sets of `configs/_base_/datasets`: what each needs, and a look at whether it is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ovseg.errors import ConfigError, unknown_name
from ovseg.layouts import LAYOUTS, MVTEC_CATEGORIES, VISA_CATEGORIES, Layout
from ovseg.prepare.instance_files import InstanceFile
from ovseg.prepare.label_images import LabelImages
from ovseg.prepare.other_layouts import CrowdFolders, DefectFolders, look_at_fsc147, look_at_images
from ovseg.prepare.report import Report
from ovseg.prepare.visa import SPLIT_FILE

CONVERTERS = "tools/dataset_converters"
#: Gets the report, the folder's word for the split, and how many files to open.
Look = Callable[[Report, str, int], None]


@dataclass(frozen=True)
class Benchmark:
    """A data set.

    Attributes:
        layout_of: the dataset class whose layout it has, see `LAYOUTS`.
        images: by split, as published; the last split is the one that is reported. None is any number.
        look: finds what is missing.
        prepare: what makes it of the published files; empty where unpacking does.
    """

    layout_of: str
    images: Mapping[str, int | None]
    look: Look
    prepare: str = ""

    @property
    def layout(self) -> Layout:
        """How its folder looks."""
        return LAYOUTS[self.layout_of]

    def check(
        self, root: Path, split: str | None = None, *, sample: int = 50, subset: bool = False
    ) -> list[Report]:
        """Looks at a folder.

        Args:
            root: the folder.
            split: of `images`, or "all"; by default the one that is reported.
            sample: files to open, evenly spaced; 0 opens none.
            subset: fewer images than published are no problem.

        Raises:
            ConfigError: no such split.
        """
        if split is not None and split != "all" and split not in self.images:
            raise unknown_name("split", split, [*self.images, "all"])
        splits = list(self.images) if split == "all" else [split or list(self.images)[-1]]
        reports = []
        for each in splits:
            report = Report(root, each, expected=self.images[each], subset=subset)
            try:
                if root.is_dir():
                    self.look(report, self._word(each), sample)
                else:
                    report.problems.append(f"there is no folder {root}")
            except (OSError, UnicodeDecodeError) as error:  # a folder without permission, a list that is none
                report.problems.append(f"cannot be read: {error}")
            reports.append(report)
        return reports

    def _word(self, split: str) -> str:
        """How the folder calls a split: its layout says so where there are two."""
        if set(self.images) == {"train", "val"}:
            return self.layout.splits[("train", "val").index(split)]
        return split


_VOC = Benchmark(
    "PascalVOCDataset",
    {"train": 1464, "val": 1449},
    LabelImages(
        "JPEGImages",
        "SegmentationClass",
        highest=20,
        listing="ImageSets/Segmentation/{split}.txt",
    ).look,
)
_CONTEXT_TOOL = f"{CONVERTERS}/pascal_context.py"
# of trainval_merged.json; the data set's own page counts 4,998 and 5,105
_CONTEXT = Benchmark(
    "PascalContextDataset",
    {"train": None, "val": 5104},
    LabelImages(
        "JPEGImages",
        "SegmentationClassContext",
        highest=59,
        listing="ImageSets/SegmentationContext/{split}.txt",
        made_by=_CONTEXT_TOOL,
    ).look,
    prepare=_CONTEXT_TOOL,
)
_COCO_IMAGES = {"train": 118287, "val": 5000}
_INSTANCES = "annotations/instances_{split}2017.json"
#: By the name of the config that tests on it.
BENCHMARKS = {
    "voc21": _VOC,
    "voc20": _VOC,
    "context60": _CONTEXT,
    "context59": _CONTEXT,
    "coco_object": Benchmark(
        "COCOObjectDataset",
        _COCO_IMAGES,
        LabelImages(
            "images/{split}",
            "annotations/{split}",
            highest=80,
            label_suffix="_instanceTrainIds.png",
            made_by=f"{CONVERTERS}/coco_object.py",
        ).look,
        prepare=f"{CONVERTERS}/coco_object.py",
    ),
    "coco_stuff164k": Benchmark(
        "COCOStuffDataset",
        _COCO_IMAGES,
        LabelImages(
            "images/{split}",
            "annotations/{split}",
            highest=170,
            label_suffix="_labelTrainIds.png",
            made_by=f"{CONVERTERS}/coco_object.py --stuff",
        ).look,
        prepare=f"{CONVERTERS}/coco_object.py --stuff",
    ),
    "cityscapes": Benchmark(
        "CityscapesDataset",
        {"train": 2975, "val": 500},
        LabelImages(
            "leftImg8bit/{split}",
            "gtFine/{split}",
            highest=18,
            image_suffix="_leftImg8bit.png",
            label_suffix="_gtFine_labelTrainIds.png",
            made_by=f"{CONVERTERS}/cityscapes.py",
        ).look,
        prepare=f"{CONVERTERS}/cityscapes.py",
    ),
    "ade20k": Benchmark(
        "ADE20KDataset",
        {"train": 20210, "val": 2000},
        LabelImages("images/{split}", "annotations/{split}", highest=150).look,
    ),
    "coco_instance": Benchmark(
        "OvCocoDataset", _COCO_IMAGES, InstanceFile(_INSTANCES, "coco", "{split}2017").look
    ),
    "coco_ov": Benchmark(
        "OvCocoDataset",
        {"train": None, "val": 4836},
        InstanceFile(_INSTANCES, "ov_coco", "{split}2017", with_objects=True).look,
    ),
    "lvis_ov": Benchmark(
        "LvisDataset",
        {"train": 100170, "val": 19809},
        InstanceFile("annotations/lvis_v1_{split}.json", "lvis").look,
    ),
    "mvtec_ad": Benchmark(
        "MVTecADDataset", {"train": 3629, "test": 1725}, DefectFolders(MVTEC_CATEGORIES).look
    ),
    "visa": Benchmark(
        "VisADataset", {"train": 8659, "test": 2162}, DefectFolders(VISA_CATEGORIES, SPLIT_FILE).look
    ),
    "fsc147": Benchmark("FSC147Dataset", {"train": 3659, "val": 1286, "test": 1190}, look_at_fsc147),
    "shanghaitech_a": Benchmark("ShanghaiTechDataset", {"train": 300, "test": 182}, CrowdFolders("A").look),
    "shanghaitech_b": Benchmark("ShanghaiTechDataset", {"train": 400, "test": 316}, CrowdFolders("B").look),
    "imagenet_unlabelled": Benchmark("UnlabelledImages", {"train": None}, look_at_images),
}
#: Other words for them.
ALIASES = {
    "voc": "voc21",
    "context": "context60",
    "coco": "coco_instance",
    "coco_regions": "coco_instance",
    "coco_stuff": "coco_stuff164k",
    "ov_coco": "coco_ov",
    "lvis": "lvis_ov",
    "imagenet": "imagenet_unlabelled",
}


def benchmark(name: str) -> Benchmark:
    """A data set by the name of its config.

    Raises:
        ConfigError: there is none, or it is drawn and has no files.
    """
    wanted = name.lower().replace("-", "_")
    wanted = ALIASES.get(wanted, wanted)
    if wanted.startswith("scenes"):
        raise ConfigError(f"'{name}' is drawn on the fly: it has no files to check")
    if wanted not in BENCHMARKS:
        raise unknown_name("data set", name, BENCHMARKS)
    return BENCHMARKS[wanted]
