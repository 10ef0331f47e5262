# Six products, drawn on the fly, no files. Tune on part="val"; "test" is for reporting.
_base_ = "anomaly.py"
test_dataloader = dict(
    dataset=dict(
        type="ScenesAnomalyDataset",
        part="test",
        seed=0,
        length=24,
        size_hw=(224, 288),
        pipeline=[
            dict(type="RenderInspection"),
            dict(
                type="mmseg.PackSegInputs",
                meta_keys=("img_path", "ori_shape", "img_shape", "category", "defect", "good"),
            ),
        ],
    )
)
