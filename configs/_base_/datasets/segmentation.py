# Images at their own size: the method resizes by itself, and labels come back at the image's size.
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        test_mode=True,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="mmseg.LoadAnnotations"),
            dict(type="mmseg.PackSegInputs"),
        ],
    ),
)
test_evaluator = dict(type="mmseg.IoUMetric", iou_metrics=["mIoU"])
