# Crops of 512 x 512 px of images whose short side is 256 to 1,024 px; validation and test as in ade20k.py.
_base_ = "ade20k.py"
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="mmseg.ADE20KDataset",
        data_root="data/ade/ADEChallengeData2016",
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="mmseg.LoadAnnotations"),
            dict(type="RandomResize", scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type="mmseg.RandomCrop", crop_size=(512, 512), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="mmseg.PhotoMetricDistortion"),
            dict(type="mmseg.PackSegInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="mmseg.ADE20KDataset",
        data_root="data/ade/ADEChallengeData2016",
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        test_mode=True,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="mmseg.LoadAnnotations"),
            dict(type="mmseg.PackSegInputs"),
        ],
    ),
)
val_evaluator = dict(type="mmseg.IoUMetric", iou_metrics=["mIoU"])
