_base_ = "segmentation.py"
test_dataloader = dict(
    dataset=dict(
        type="mmseg.PascalContextDataset",
        data_root="data/VOCdevkit/VOC2010",
        ann_file="ImageSets/SegmentationContext/val.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClassContext"),
    )
)
