# In minutes on two cores. The bundled tower has statistics of its own, stays without prompts (a backward pass
# through it costs three times the forward pass), and puts sentences about numbers close together: the scale.
_base_ = ["../_base_/datasets/scenes_counting_train.py", "../_base_/runtime/train_scenes.py"]
model = dict(
    type="EbcCounterModel",
    encoder="bundled",
    bins=dict(most=2, open_centre=2.0, block_px=32),
    singular="thing",
    plural="things",
    num_prompts=0,
    window=None,
    statistics="own",
    logit_scale=30.0,
    count_loss="mae",
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-4))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, end=20, by_epoch=False),
    dict(type="CosineAnnealingLR", begin=20, end=320, T_max=300, eta_min=1e-5, by_epoch=False),
]
train_cfg = dict(max_iters=320, val_interval=160)
