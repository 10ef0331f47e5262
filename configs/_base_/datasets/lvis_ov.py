# Open-vocabulary LVIS: the rare classes are the novel ones.
_base_ = "detection.py"
test_dataloader = dict(
    dataset=dict(
        type="LvisDataset",
        data_root="data/lvis_v1",
        ann_file="annotations/lvis_v1_val.json",
    )
)
test_evaluator = dict(
    metric=["bbox", "segm"],
    federated=True,
    splits=dict(rare="lvis_rare", common="lvis_common", frequent="lvis_frequent"),
)
