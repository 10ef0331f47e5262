# Drawn on the fly, no files. Tune on split="val"; "test" and the others are for reporting.
_base_ = "detection.py"
test_dataloader = dict(
    dataset=dict(
        type="ScenesDetectionDataset",
        split="test",
        seed=0,
        length=64,
        size_hw=(224, 288),
        pipeline=[
            dict(type="RenderSceneObjects"),
            dict(type="mmdet.LoadAnnotations", box_type=None),
            dict(
                type="mmdet.PackDetInputs",
                meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "instances"),
            ),
        ],
    )
)
test_evaluator = dict(metric=["bbox", "segm"])
