_base_ = ["../_base_/methods/cat-seg_vitb.py", "../_base_/datasets/ade20k.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="ade150")
