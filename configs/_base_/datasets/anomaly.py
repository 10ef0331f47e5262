# Images at their own size: the method resizes by itself, and maps come back at the image's size.
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        test_mode=True,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnomalyMask"),
            dict(
                type="mmseg.PackSegInputs",
                meta_keys=("img_path", "ori_shape", "img_shape", "category", "defect", "good"),
            ),
        ],
    ),
)
test_evaluator = dict(type="AnomalyMetric")
