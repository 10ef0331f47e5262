# Images at their own size: the method resizes by itself, and boxes come back in the image's pixels.
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        test_mode=True,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="mmdet.LoadAnnotations", box_type=None),
            dict(type="mmdet.PackDetInputs"),
        ],
    ),
)
test_evaluator = dict(type="OvCocoMetric")
