# No published schedule: CoOp's own optimiser, cosine and context (16 random vectors), pixels for images.
_base_ = ["../_base_/datasets/ade20k_train.py", "../_base_/runtime/train.py"]
model = dict(
    type="PromptTrainer",
    encoder="clip_vitb16_laion2b",
    method=dict(type="maskclip"),
    vocabulary="ade150_names",
    stride=4,
)
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="SGD", lr=2e-3, momentum=0.9, weight_decay=5e-4)
)
param_scheduler = [
    dict(type="ConstantLR", factor=0.005, end=200, by_epoch=False),
    dict(type="CosineAnnealingLR", begin=200, end=5000, T_max=4800, eta_min=0.0, by_epoch=False),
]
train_cfg = dict(max_iters=5000, val_interval=2500)
