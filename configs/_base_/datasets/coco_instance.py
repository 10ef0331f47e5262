_base_ = "detection.py"
test_dataloader = dict(
    dataset=dict(
        type="OvCocoDataset",
        vocabulary="coco",
        data_root="data/coco",
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
    )
)
test_evaluator = dict(metric=["bbox", "segm"], sizes=True)
