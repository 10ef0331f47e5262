# Drawn on the fly, no files: many of one kind. Tune on split="val"; "counting" is for reporting.
_base_ = "counting.py"
test_dataloader = dict(
    dataset=dict(
        type="ScenesCountingDataset",
        split="counting",
        seed=0,
        length=64,
        size_hw=(224, 288),
        pipeline=[dict(type="RenderCountedScene"), dict(type="PackCounts")],
    )
)
