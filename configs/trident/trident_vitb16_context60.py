_base_ = ["../_base_/methods/trident.py", "../_base_/datasets/context60.py", "../_base_/runtime/default.py"]
model = dict(
    vocabulary="context60",
    method=dict(short_side=576, coarse_threshold=0.15),
    head=dict(threshold=0.15),
)
