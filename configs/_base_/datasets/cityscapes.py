_base_ = "segmentation.py"
test_dataloader = dict(
    dataset=dict(
        type="mmseg.CityscapesDataset",
        data_root="data/cityscapes",
        data_prefix=dict(img_path="leftImg8bit/val", seg_map_path="gtFine/val"),
    )
)
