# Images of at most 1,333 x 800 px, two for each process; validation and test as in coco_instance.py.
_base_ = "coco_instance.py"
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="OvCocoDataset",
        vocabulary="coco",
        data_root="data/coco",
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="mmdet.Resize", scale=(1333, 800), keep_ratio=True),
            dict(type="mmdet.RandomFlip", prob=0.5),
            dict(type="mmdet.PackDetInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="OvCocoDataset",
        vocabulary="coco",
        data_root="data/coco",
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        test_mode=True,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="mmdet.LoadAnnotations", box_type=None),
            dict(type="mmdet.PackDetInputs"),
        ],
    ),
)
val_evaluator = dict(type="OvCocoMetric", metric=["bbox", "segm"], sizes=True)
