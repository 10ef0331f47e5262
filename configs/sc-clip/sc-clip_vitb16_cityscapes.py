_base_ = ["../_base_/methods/sc-clip.py", "../_base_/datasets/cityscapes.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="cityscapes", method=dict(short_side=560))
