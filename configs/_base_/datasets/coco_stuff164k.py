_base_ = "segmentation.py"
test_dataloader = dict(
    dataset=dict(
        type="mmseg.COCOStuffDataset",
        data_root="data/coco_stuff164k",
        data_prefix=dict(img_path="images/val2017", seg_map_path="annotations/val2017"),
    )
)
