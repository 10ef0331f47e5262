_base_ = ["../_base_/methods/naclip.py", "../_base_/datasets/cityscapes.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="cityscapes", method=dict(short_side=560))
