# As published, 12 epochs for 8 processes of 2 images; Mask R-CNN learns twice as fast.
_base_ = "../runtime/train_detection.py"
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={"net.backbone": dict(lr_mult=0.1), "norm": dict(decay_mult=0.0)}),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, begin=0, end=500, by_epoch=False),
    dict(type="MultiStepLR", milestones=[8, 11], gamma=0.1, begin=0, end=12, by_epoch=True),
]
sync_bn = "torch"
train_cfg = dict(_delete_=True, type="EpochBasedTrainLoop", max_epochs=12, val_interval=1)
default_hooks = dict(
    checkpoint=dict(by_epoch=True, interval=1), logger=dict(interval=50, log_metric_by_epoch=True)
)
log_processor = dict(by_epoch=True)
