_base_ = ["../_base_/methods/trident.py", "../_base_/datasets/cityscapes.py", "../_base_/runtime/default.py"]
model = dict(
    vocabulary="cityscapes",
    method=dict(short_side=688, cosine_factor=3.0, keep_negative=False, halves=True, coarse_threshold=0.1),
)
