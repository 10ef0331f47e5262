# Training scenes, a new crop of 112 x 112 px each time; validation and test as in scenes.py.
_base_ = ["scenes.py", "scenes_loaders.py"]
train_dataloader = dict(
    dataset=dict(
        type="ScenesDataset",
        split="train",
        seed=0,
        length=8000,
        size_hw=(224, 288),
        pipeline=[
            dict(type="RenderScene"),
            dict(type="mmseg.RandomCrop", crop_size=(112, 112)),
            dict(type="RandomFlip", prob=0.5),
            dict(type="mmseg.PackSegInputs"),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        type="ScenesDataset",
        split="val",
        seed=0,
        length=24,
        size_hw=(224, 288),
        test_mode=True,
        pipeline=[dict(type="RenderScene"), dict(type="mmseg.PackSegInputs")],
    ),
)
val_evaluator = dict(type="mmseg.IoUMetric", iou_metrics=["mIoU"])
