# The dense form of CoOp: a context for all names, learned from label maps of training scenes.
_base_ = ["../_base_/datasets/scenes_train.py", "../_base_/runtime/train_scenes.py"]
model = dict(
    type="PromptTrainer",
    encoder="bundled",
    method=dict(type="maskclip", short_side=224, crop=112, stride=56),
    vocabulary=dict(type="SceneClasses"),
    train_vocabulary=dict(type="SceneClasses", split="train"),
    length=8,
    classes_per_step=64,
    stride=4,
)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(pipeline=[dict(type="RenderScene"), dict(type="mmseg.PackSegInputs")]),
)
optim_wrapper = dict(
    type="OptimWrapper", optimizer=dict(type="SGD", lr=2e-3, momentum=0.9, weight_decay=5e-4)
)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=200, eta_min=0.0, by_epoch=False)]
train_cfg = dict(max_iters=200, val_interval=100)
