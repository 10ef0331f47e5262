# The authors' settings for a ViT: prompts in a frozen tower, crops and windows of 224 px, warm-up from above.
_base_ = "clip-ebc_rn50_shanghaitech_a.py"
model = dict(encoder="clip_vitb16_openai", window=224)
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="CountCrop", crop_hw=(224, 224)),
            dict(type="PackCounts"),
        ]
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=1.0, end_factor=0.1, end=50),
    dict(
        type="CosineRestartLR",
        periods=[5 * 2**n for n in range(9)],
        restart_weights=[0.1] * 9,
        eta_min=1e-7,
        begin=50,
    ),
]
