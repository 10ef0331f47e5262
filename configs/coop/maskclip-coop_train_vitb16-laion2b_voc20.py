# As for ADE20K. Pascal VOC 2012 without background: 1,464 images of the train list.
_base_ = ["../_base_/datasets/voc20.py", "../_base_/runtime/train.py"]
model = dict(
    type="PromptTrainer",
    encoder="clip_vitb16_laion2b",
    method=dict(type="maskclip"),
    vocabulary="voc20",
    stride=4,
)
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="PascalVOC20Dataset",
        data_root="data/VOCdevkit/VOC2012",
        ann_file="ImageSets/Segmentation/train.txt",
        data_prefix=dict(img_path="JPEGImages", seg_map_path="SegmentationClass"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="mmseg.LoadAnnotations"),
            dict(type="RandomFlip", prob=0.5),
            dict(type="mmseg.PackSegInputs"),
        ],
    ),
)
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="SGD", lr=2e-3, momentum=0.9, weight_decay=5e-4)
)
param_scheduler = [
    dict(type="ConstantLR", factor=0.005, end=50, by_epoch=False),
    dict(type="CosineAnnealingLR", begin=50, end=2000, T_max=1950, eta_min=0.0, by_epoch=False),
]
train_cfg = dict(max_iters=2000, val_interval=1000)
