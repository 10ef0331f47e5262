_base_ = ["../_base_/methods/trident.py", "../_base_/datasets/voc20.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="voc20_proxyclip", method=dict(stride=112, cosine_factor=0.0))
