# Crops of training scenes with many of one kind; all objects are counted, as "thing".
_base_ = ["scenes_counting.py", "scenes_loaders.py"]
train_dataloader = dict(
    dataset=dict(
        type="ScenesCountingDataset",
        split="train",
        seed=0,
        length=8000,
        size_hw=(224, 288),
        everything="thing",
        pipeline=[
            dict(type="RenderCountedScene"),
            dict(type="CountCrop", crop_hw=(160, 160), scale=(1.0, 1.0)),
            dict(type="PackCounts"),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="ScenesCountingDataset",
        split="val",
        seed=0,
        length=24,
        size_hw=(224, 288),
        everything="thing",
        test_mode=True,
        pipeline=[dict(type="RenderCountedScene"), dict(type="PackCounts")],
    ),
)
val_evaluator = dict(type="CountingMetric")
test_dataloader = dict(dataset=dict(everything="thing"))
