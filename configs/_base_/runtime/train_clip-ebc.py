# trainer.py of github.com/Yiming-M/CLIP-EBC at b52a5944: warm-up of 50 epochs, then cosines of 5, 10, 20 ...
_base_ = "train.py"
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=1e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, end=50),
    dict(
        type="CosineRestartLR",
        periods=[5 * 2**n for n in range(9)],
        restart_weights=[1.0] * 9,
        eta_min=1e-7,
        begin=50,
    ),
]
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=2600, val_begin=50, val_interval=1)
default_hooks = dict(
    checkpoint=dict(by_epoch=True, interval=5, save_best="MAE", rule="less"),
    logger=dict(log_metric_by_epoch=True),
)
log_processor = dict(by_epoch=True)
randomness = dict(seed=42)
