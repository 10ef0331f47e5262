_base_ = ["../_base_/methods/san_vitl14.py", "../_base_/datasets/voc20.py", "../_base_/runtime/default.py"]
model = dict(vocabulary="voc20")
