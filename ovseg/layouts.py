"""How each dataset's folder looks: shown where files are missing, and checked by `tools/prepare.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """A dataset's folder.

    Attributes:
        root: where configs look for it.
        tree: what is in it, one path a line with one example; `{split}` stands for the split's word. What
            follows a `#` explains.
        splits: the split's word for training and for validation.
    """

    root: str
    tree: tuple[str, ...]
    splits: tuple[str, str] = ("train", "val")

    def lines(self, split: str | None = None) -> list[str]:
        """The tree of a split, or of both."""
        words = self.splits if split is None else (self.splits[("train", "val").index(split)],)
        return list(dict.fromkeys(line.replace("{split}", word) for word in words for line in self.tree))


MVTEC_CATEGORIES = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut", "pill", "screw"),
    *("tile", "toothbrush", "transistor", "wood", "zipper"),
)
VISA_CATEGORIES = (
    *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2"),
    *("pcb3", "pcb4", "pipe_fryum"),
)
_VOC = (
    "JPEGImages/2007_000033.jpg ...",
    "SegmentationClass/2007_000033.png ...  # 0 background, 1 to 20 classes, 255 void",
    "ImageSets/Segmentation/{split}.txt",
)
_CONTEXT = (
    "JPEGImages/2008_000002.jpg ...",
    "SegmentationClassContext/2008_000002.png ...  "
    "# 0 background, 1 to 59 classes; made by tools/dataset_converters/pascal_context.py",
    "ImageSets/SegmentationContext/{split}.txt",
)
_COCO = Layout(
    "data/coco",
    ("{split}2017/000000000139.jpg ...", "annotations/instances_{split}2017.json"),
)
#: By the name of the dataset's class, without its scope.
LAYOUTS = {
    "ADE20KDataset": Layout(
        "data/ade/ADEChallengeData2016",
        (
            "images/{split}/ADE_*_00000001.jpg ...",
            "annotations/{split}/ADE_*_00000001.png ...  # 0 unlabelled, 1 to 150 classes",
        ),
        ("training", "validation"),
    ),
    "CityscapesDataset": Layout(
        "data/cityscapes",
        (
            "leftImg8bit/{split}/<city>/<city>_000000_000294_leftImg8bit.png ...",
            "gtFine/{split}/<city>/<city>_000000_000294_gtFine_labelTrainIds.png ...  "
            "# made by tools/dataset_converters/cityscapes.py",
        ),
    ),
    "COCOObjectDataset": Layout(
        "data/coco_object",
        (
            "images/{split}/000000000139.jpg ...",
            "annotations/{split}/000000000139_instanceTrainIds.png ...  "
            "# made by tools/dataset_converters/coco_object.py",
        ),
        ("train2017", "val2017"),
    ),
    "COCOStuffDataset": Layout(
        "data/coco_stuff164k",
        (
            "images/{split}/000000000139.jpg ...",
            "annotations/{split}/000000000139_labelTrainIds.png ...  "
            "# made by tools/dataset_converters/coco_object.py --stuff",
        ),
        ("train2017", "val2017"),
    ),
    "CocoRegions": _COCO,
    "OvCocoDataset": _COCO,
    "LvisDataset": Layout(
        "data/lvis_v1",
        (
            "annotations/lvis_v1_{split}.json",
            "{split}2017/000000000139.jpg ...  # COCO's; validation has images of both folders",
        ),
    ),
    "FSC147Dataset": Layout(
        "data/FSC147",
        (
            "annotation_FSC147_384.json",
            "Train_Test_Val_FSC_147.json",
            "ImageClasses_FSC147.txt",
            "images_384_VarV2/2.jpg ...",
        ),
    ),
    "ShanghaiTechDataset": Layout(
        "data/ShanghaiTech",
        tuple(
            f"part_{part}/{{split}}_data/{path}"
            for part in "AB"
            for path in ("images/IMG_1.jpg ...", "ground-truth/GT_IMG_1.mat ...  # or ground_truth/")
        ),
        ("train", "test"),
    ),
    "MVTecADDataset": Layout(
        "data/mvtec_ad",
        (
            "bottle/train/good/000.png ...  # and so on, a folder for each category",
            "bottle/test/good/000.png ...",
            "bottle/test/<defect>/000.png ...",
            "bottle/ground_truth/<defect>/000_mask.png ...  # or 000.png",
        ),
    ),
    "VisADataset": Layout(
        "data/visa",
        (
            "split_csv/1cls.csv",
            "candle/Data/Images/{Normal,Anomaly}/0000.JPG ...  # and so on, a folder for each category",
            "candle/Data/Masks/Anomaly/000.png ...",
            "# or without split_csv, as tools/dataset_converters/visa.py converts it:",
            "candle/{train,test}/good/0000.JPG ...",
            "candle/test/bad/000.JPG ...",
            "candle/ground_truth/bad/000.png ...",
        ),
    ),
    "PascalContextDataset": Layout("data/VOCdevkit/VOC2010", _CONTEXT),
    "PascalContextDataset59": Layout("data/VOCdevkit/VOC2010", _CONTEXT),
    "PascalVOCDataset": Layout("data/VOCdevkit/VOC2012", _VOC),
    "PascalVOC20Dataset": Layout("data/VOCdevkit/VOC2012", _VOC),
    "UnlabelledImages": Layout("data/imagenet", ("train/n01440764/n01440764_10026.JPEG ...  # any images",)),
}


def shown_layout(dataset: str, root: str) -> str:
    """The expected folder as lines for a message; empty where the dataset is none of ours.

    Args:
        dataset: its type, with or without a scope (`mmseg.ADE20KDataset`).
        root: the folder that the config names.
    """
    layout = LAYOUTS.get(dataset.rpartition(".")[2])
    if layout is None:
        return ""
    return f"\nexpected:\n{root}/\n" + "\n".join(f"  {line}" for line in layout.lines())
