# Tower and prompts at once on crops of training scenes, in minutes on two cores.
_base_ = ["../_base_/datasets/scenes_regions.py", "../_base_/runtime/train.py"]
model = dict(
    type="MaskPromptTrainer",
    encoder="bundled",
    learns="both",
    crop_px=64,
    scale=24.0,
    method=dict(short_side=224, crop=112, stride=56),
    vocabulary=dict(type="SceneClasses"),
    templates="simple",
    proposals=dict(type="sam", points_per_side=8, pred_iou_thresh=0.4, stability_score_thresh=0.4),
)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=3e-4, betas=(0.9, 0.98), weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={"prompts": dict(lr_mult=50.0, decay_mult=0.0)}),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, end=20, by_epoch=False),
    dict(type="CosineAnnealingLR", begin=20, end=200, T_max=180, eta_min=1e-6, by_epoch=False),
]
train_cfg = dict(max_iters=200, val_interval=100)
default_hooks = dict(checkpoint=dict(interval=100))
