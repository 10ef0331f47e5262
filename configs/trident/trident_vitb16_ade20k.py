_base_ = ["../_base_/methods/trident.py", "../_base_/datasets/ade20k.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="ade150", method=dict(short_side=576, keep_negative=False, coarse_threshold=0.05))
