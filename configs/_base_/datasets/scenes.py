# Drawn on the fly, no files. Tune on split="val"; "test" and the others are for reporting.
_base_ = "segmentation.py"
test_dataloader = dict(
    dataset=dict(
        type="ScenesDataset",
        split="test",
        seed=0,
        length=64,
        size_hw=(224, 288),
        pipeline=[dict(type="RenderScene"), dict(type="mmseg.PackSegInputs")],
    )
)
