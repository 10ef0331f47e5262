_base_ = ["../_base_/methods/naclip.py", "../_base_/datasets/voc21.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="voc21", method=dict(crop=None), head=dict(threshold=0.1))
