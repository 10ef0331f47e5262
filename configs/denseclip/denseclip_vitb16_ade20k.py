_base_ = [
    "../_base_/methods/denseclip.py",
    "../_base_/datasets/ade20k_train.py",
    "../_base_/schedules/denseclip_80k.py",
]
model = dict(
    encoder="clip_vitb16_openai",
    classes="ade150",
    matching=dict(context_std=1.0),
    pyramid=dict(drop_path_rate=0.1),
    short_side=640,
    windows=dict(crop=640, stride=426, max_batch=8),
)
# Crops of 640 x 640 px.
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="mmseg.LoadAnnotations"),
            dict(type="RandomResize", scale=(2048, 640), ratio_range=(0.5, 2.0), keep_ratio=True),
            dict(type="mmseg.RandomCrop", crop_size=(640, 640), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="mmseg.PhotoMetricDistortion"),
            dict(type="mmseg.PackSegInputs"),
        ]
    )
)
