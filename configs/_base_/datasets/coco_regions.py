# Mask-noun pairs of COCO 2017: its instances, or pairs mined from its captions in the same form (ann_file).
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="CocoRegions",
        data_root="data/coco",
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img_path="train2017"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadRegions"),
            dict(type="PackRegionCrops", at_most=4),
        ],
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoRegions",
        data_root="data/coco",
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img_path="val2017"),
        test_mode=True,
        pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadRegions"), dict(type="PackRegionCrops")],
    ),
)
val_evaluator = dict(type="RegionAccuracy")
test_dataloader = val_dataloader
test_evaluator = val_evaluator
