_base_ = [
    "../_base_/methods/denseclip.py",
    "../_base_/datasets/ade20k_train.py",
    "../_base_/schedules/denseclip_80k.py",
]
model = dict(
    encoder="RN101-quickgelu:openai",
    classes="ade150",
    matching=dict(context_std=1.0),
    short_side=512,
    windows=dict(crop=512, stride=341, max_batch=8),
)
