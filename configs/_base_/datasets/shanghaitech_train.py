# Crops as published, of 448 px for a ResNet; a config chooses the part. Tested after every epoch.
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="ShanghaiTechDataset",
        data_root="data/ShanghaiTech",
        split="train",
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="CountCrop", crop_hw=(448, 448)),
            dict(type="PackCounts"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ShanghaiTechDataset",
        data_root="data/ShanghaiTech",
        split="test",
        test_mode=True,
        pipeline=[dict(type="LoadImageFromFile"), dict(type="PackCounts")],
    ),
)
val_evaluator = dict(type="CountingMetric")
