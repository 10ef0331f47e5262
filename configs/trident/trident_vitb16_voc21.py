_base_ = ["../_base_/methods/trident.py", "../_base_/datasets/voc21.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="voc21_proxyclip", method=dict(short_side=448), head=dict(threshold=0.2))
