# As published: trained on the test images of VisA, with their masks, and tested on MVTec AD.
_base_ = ["../_base_/datasets/mvtec_ad.py", "../_base_/runtime/train.py"]
model = dict(type="AnomalyClipTrainer", encoder="clip_vitl14_336_openai")
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="VisADataset",
        data_root="data/visa",
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnomalyMask"),
            dict(type="mmseg.PackSegInputs", meta_keys=("img_path", "ori_shape", "img_shape", "category")),
        ],
    ),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=1e-3, betas=(0.5, 0.999)))
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=15)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1))
randomness = dict(seed=111)
test_evaluator = dict(size=518)
