# Training scenes of one thing each, half of them damaged; validation and test as in scenes_anomaly.py.
_base_ = ["scenes_anomaly.py", "scenes_loaders.py"]
train_dataloader = dict(
    dataset=dict(
        type="ScenesDefectsDataset",
        seed=0,
        length=8000,
        pipeline=[dict(type="RenderDefects"), dict(type="mmseg.PackSegInputs")],
    ),
)
val_dataloader = dict(
    sampler=dict(round_up=False),
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
