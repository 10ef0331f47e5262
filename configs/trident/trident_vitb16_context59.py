_base_ = ["../_base_/methods/trident.py", "../_base_/datasets/context59.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="context59", method=dict(short_side=576, coarse_threshold=0.15))
