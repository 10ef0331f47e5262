# The published first stage: the whole tower, AdamW 5e-6, 512 crops a step (4 GPUs x 128), 5 epochs, cosine.
_base_ = ["../_base_/datasets/coco_regions.py", "../_base_/runtime/train.py"]
model = dict(type="MaskPromptTrainer", encoder="clip_vitb16_openai", learns="tower", distinct=True)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-6, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=100, by_epoch=False),
    dict(type="CosineAnnealingLR", eta_min=0.0, begin=0, end=5, T_max=5, convert_to_iter_based=True),
]
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=5)
default_hooks = dict(checkpoint=dict(interval=1000))
