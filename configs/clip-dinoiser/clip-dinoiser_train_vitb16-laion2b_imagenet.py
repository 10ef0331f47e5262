# As published: 100 epochs of 63 batches (the last one smaller); 5e-5 and 1e-2, a tenth of it after 5,000.
_base_ = [
    "../_base_/datasets/imagenet_unlabelled.py",
    "../_base_/datasets/voc20.py",
    "../_base_/runtime/train.py",
]
model = dict(type="DinoiserTrainer", encoder="clip_vitb16_laion2b", vocabulary="voc20_dinoiser")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-5, weight_decay=0.01),
    paramwise_cfg=dict(custom_keys={"bkg_decoder": dict(lr_mult=200)}),
)
param_scheduler = [dict(type="MultiStepLR", milestones=[5000], gamma=0.1, by_epoch=False)]
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=100)
default_hooks = dict(checkpoint=dict(interval=630))
