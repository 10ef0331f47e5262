_base_ = ["../_base_/methods/proxyclip.py", "../_base_/datasets/context60.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="context60", head=dict(threshold=0.15))
