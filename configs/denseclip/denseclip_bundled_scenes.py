# The evaluation classes in training scenes; whatever else these show has no label. All is trained but the
# text tower.
_base_ = [
    "../_base_/methods/denseclip.py",
    "../_base_/datasets/scenes_train.py",
    "../_base_/runtime/train_scenes.py",
]
model = dict(
    encoder="bundled",
    classes=dict(type="SceneClasses"),
    matching=dict(appended="logits"),  # a few hundred iterations do not suffice to scale cosines up
    short_side=224,
    windows=dict(crop=112, stride=56),
    neck=dict(out_channels=64),
    decode_head=dict(channels=64),
)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="RenderScene"),
            dict(type="SceneLabels"),
            dict(type="mmseg.RandomCrop", crop_size=(112, 112), cat_max_ratio=0.75),
            dict(type="RandomFlip", prob=0.5),
            dict(type="mmseg.PackSegInputs"),
        ]
    )
)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={"net.backbone.visual": dict(lr_mult=0.1), "norm": dict(decay_mult=0.0)}),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, end=10, by_epoch=False),
    dict(type="PolyLR", begin=10, end=160, power=0.9, eta_min=1e-6, by_epoch=False),
]
train_cfg = dict(max_iters=160, val_interval=80)
