_base_ = ["../_base_/methods/sclip.py", "../_base_/datasets/context60.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="context60", method=dict(temperature=50.0), head=dict(threshold=0.1))
