_base_ = "../../configs/_base_/runtime/train.py"
custom_imports = dict(imports=["ovseg.mm", "mm.toy"])
custom_hooks = []
model = dict(type="ToyModel")
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="ToyDataset", pipeline=[dict(type="ToyPack")]),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=0.05))
param_scheduler = [dict(type="MultiStepLR", milestones=[6], gamma=0.3, by_epoch=False)]
train_cfg = dict(max_iters=12)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=5))
log_processor = dict(window_size=1)
