_base_ = [
    "../_base_/datasets/shanghaitech_train.py",
    "../_base_/datasets/shanghaitech_b.py",
    "../_base_/runtime/train_clip-ebc.py",
]
model = dict(
    type="EbcCounterModel",
    encoder="RN50:openai",
    bins=dict(dataset="shb", block_px=8, most=4),
    window=None,
)
train_dataloader = dict(dataset=dict(part="B"))
val_dataloader = dict(dataset=dict(part="B"))
