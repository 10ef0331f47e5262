# 1,000 images of ImageNet's training set, drawn with replacement, augmented as CLIP-DINOiser's were.
train_dataloader = dict(
    batch_size=16,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="UnlabelledImages",
        data_root="data/imagenet",
        data_prefix=dict(img_path="train"),
        drawn=1000,
        draw_seed=0,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="mmseg.ResizeShortestEdge", scale=448, max_size=8192),
            dict(type="mmseg.RandomCrop", crop_size=(448, 448)),
            dict(type="RandomFlip", prob=0.5),
            dict(type="BrightnessJitter", amount=0.5),
            dict(type="mmseg.PackSegInputs"),
        ],
    ),
)
