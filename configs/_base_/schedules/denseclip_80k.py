# As published, for 8 processes of 4 images. Warm-up and decay both begin at the first iteration.
_base_ = "../runtime/train.py"
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={"net.backbone": dict(lr_mult=0.1), "norm": dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(type="PolyLR", power=0.9, eta_min=1e-6, begin=0, end=80000, by_epoch=False),
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=1500, by_epoch=False),
]
sync_bn = "torch"
train_cfg = dict(max_iters=80000, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=8000), logger=dict(interval=50))
