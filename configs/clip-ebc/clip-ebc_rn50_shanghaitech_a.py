_base_ = [
    "../_base_/datasets/shanghaitech_train.py",
    "../_base_/datasets/shanghaitech_a.py",
    "../_base_/runtime/train_clip-ebc.py",
]
model = dict(
    type="EbcCounterModel",
    encoder="RN50:openai",
    singular="person",
    plural="people",
    bins=dict(dataset="sha", block_px=8, most=4),
    window=None,
)
train_dataloader = dict(dataset=dict(part="A"))
val_dataloader = dict(dataset=dict(part="A"))
