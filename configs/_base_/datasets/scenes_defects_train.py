# Training scenes of one thing each, half of them damaged; validation and test as in scenes_anomaly.py.
_base_ = "scenes_anomaly.py"
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="ScenesDefectsDataset",
        seed=0,
        length=8000,
        pipeline=[dict(type="RenderDefects"), dict(type="mmseg.PackSegInputs")],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False, round_up=False),
    dataset=dict(
        type="ScenesAnomalyDataset",
        part="val",
        seed=0,
        length=16,
        size_hw=(224, 288),
        test_mode=True,
        pipeline=[
            dict(type="RenderInspection"),
            dict(
                type="mmseg.PackSegInputs",
                meta_keys=("img_path", "ori_shape", "img_shape", "category", "defect", "good"),
            ),
        ],
    ),
)
val_evaluator = dict(type="AnomalyMetric")
