# From random convolutions, in minutes on two cores. Pictures of training scenes only, no labels.
_base_ = ["../_base_/datasets/scenes_train.py", "../_base_/runtime/train_scenes.py"]
model = dict(
    type="DinoiserTrainer",
    encoder="bundled",
    guide="bundled",
    saliency="bundled",
    hidden=128,
    method=dict(short_side=224, crop=112, stride=56, threshold=0.35),
    vocabulary=dict(type="SceneClasses"),
)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=3e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, end=20, by_epoch=False),
    dict(type="CosineAnnealingLR", begin=20, end=500, T_max=480, eta_min=1e-4, by_epoch=False),
]
train_cfg = dict(max_iters=500, val_interval=250)
